"""Draws cache.svg, the slots of the cache through prefill, score, prune and decode: `python docs/plot_cache.py`."""

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LEFT, CELL = 360, 88, 24  # of a narrow phone; where slots begin; a slot
ROW = CELL + 4
PROMPT = "tvvvvaaaat"
SUMS = {0: (7, 2, 1, 8, 2, 1, 6, 2, 1, 9), 1: (6, 1, 7, 2, 1, 2, 1, 2, 8, 9)}  # by KV head, what the policy ranks by
LATER = (("tvvt", "tvat"), ("taat", "tvat"))  # what the layers after the first keep, by KV head
RESERVED, DECODED = 4, 2
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .head { font-weight: 600; font-size: 14px }
  .cell { text-anchor: middle; font-size: 12px }
  rect { stroke: #57606a; stroke-width: 1 }
  .page { fill: #ffffff; stroke: none }
  .t { fill: #d0d7de } .v { fill: #a5d6ff } .a { fill: #ffd8a8 } .g { fill: #b7ebc0 }
  .free { fill: #ffffff; stroke-dasharray: 3 2 }
  .lost { opacity: .3 }
  .sum { fill: #57606a; stroke: none }
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words whose baseline begins at x, y."""
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{chosen}>{escape(words)}</text>'


def slots(y: float, label: str, tokens: str, lost: frozenset[int] = frozenset()) -> Iterator[str]:
    """A row of slots; `_` is a free one."""
    yield text(8, y + 17, label)
    for at, token in enumerate(tokens):
        x = LEFT + at * CELL
        kind = "free" if token == "_" else token + " lost" * (at in lost)
        yield f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL}" rx="3" class="{kind}"/>'
        if token != "_" and at not in lost:
            yield text(x + CELL / 2 - 1, y + 16, token, "cell")


def sums(y: float, label: str, values: tuple[int, ...]) -> Iterator[str]:
    """Column sums of attention, as bars that stand on `y`."""
    yield text(8, y - 3, label)
    for at, value in enumerate(values):
        yield f'<rect x="{LEFT + at * CELL + 4}" y="{y - 3 * value}" width="14" height="{3 * value}" class="sum"/>'


def kept(head: int) -> set[int]:
    """Text, and the two other slots of largest sum."""
    media = [at for at, token in enumerate(PROMPT) if token != "t"]
    best = sorted(media, key=lambda at: -SUMS[head][at])[:2]
    return {at for at, token in enumerate(PROMPT) if token == "t"} | set(best)


def drawing() -> str:
    """The picture."""
    shapes: list[str] = []
    y = 22
    shapes += [text(8, y, "1  prefill", "head"), text(LEFT, y, "layer 0 holds every token of the prompt")]
    for head in (0, 1):
        shapes += slots(y + 12 + head * ROW, f"KV head {head}", PROMPT)
    y += 96
    shapes += [text(8, y, "2  score", "head"), text(LEFT, y, "attention is summed by column")]
    for head in (0, 1):
        shapes += sums(y + 40 + head * 34, f"KV head {head}", SUMS[head])
    y += 102
    shapes += [text(8, y, "3  prune", "head"), text(LEFT, y, "every KV head keeps its own slots,")]
    shapes += [text(LEFT, y + 17, "then the next layer runs")]
    for head in (0, 1):
        lost = frozenset(range(len(PROMPT))) - kept(head)
        shapes += slots(y + 28 + head * ROW, f"KV head {head}", PROMPT, lost)
    y += 112
    shapes += [text(8, y, "4  decode", "head"), text(LEFT, y, "smaller arrays; new tokens (g) fill")]
    shapes += [text(LEFT, y + 17, "the reserved slots")]
    new = "g" * DECODED + "_" * (RESERVED - DECODED)
    top = y + 28
    first = ["".join(PROMPT[at] for at in sorted(kept(head))) for head in (0, 1)]
    for layer, heads in enumerate((first, *LATER)):
        shapes.append(text(LEFT + (4 + RESERVED) * CELL + 6, top + ROW + 3, f"layer {layer}"))
        for head, tokens in enumerate(heads):
            shapes += slots(top + head * ROW, f"KV head {head}", tokens + new)
        top += 2 * ROW + 8
    names = (("t", "text"), ("v", "video"), ("a", "audio"), ("g", "generated"))
    for at, (kind, name) in enumerate(names):
        x = 8 + at * 76
        shapes.append(f'<rect x="{x}" y="{top + 6}" width="16" height="16" rx="3" class="{kind}"/>')
        shapes.append(text(x + 22, top + 19, name))
    height = top + 34
    title = "Prefill, score, prune and decode over the slots of a cache"
    body = "\n  ".join([f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>', *shapes])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img">\n  <title>{title}</title>\n  <style>{STYLE}  </style>\n  {body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("cache.svg").write_text(drawing())
