"""Tables of what a model needs on each device, and how much more of it would fit."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.perf.compiled import Compiled

GIB = 2**30
NOTES = """\
Compiler estimates; nothing was run. Needs: arguments (weights included), outputs that are not donated, temporaries and
code. TFLOP and GB accessed count the body of every loop once (a prefill's attention is in loops; of a decode block one
step is counted), and bytes accessed counts operands, about twice the true traffic of K and V. Collectives: how many
stand in the program, and the bytes of the largest."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One program.

    Attributes:
        program: prefill, prune, or decode.
        cache: full or pruned.
        rows: of the batch.
        kv: bytes per device of K and V in its cache.
        cache_bytes: bytes per device of all of its cache.
        result: what the compiler says.
    """

    program: str
    cache: str
    rows: int
    kv: int
    cache_bytes: int
    result: Compiled


@dataclasses.dataclass(frozen=True)
class Capacity:
    """How much fits into the devices' memory, by arithmetic on the estimates.

    Attributes:
        cache: full or pruned.
        kv_share: of K and V in what decoding needs.
        fixed: bytes per device beside the decoding batch's cache: the towers and the larger of what the prefill of
            another group needs (weights included) and what decoding needs for all but its cache.
        rows: that fit at this context.
        tokens: of context that fit at this batch, a prefill of more tokens needing more in proportion.
    """

    cache: str
    kv_share: float
    fixed: int
    rows: int
    tokens: int


def capacities(about: dict[str, Any], rows: list[Row]) -> list[Capacity]:
    """For the full and the pruned cache, if the devices' memory is known and the programs fit into it."""
    found = []
    for cache in ("full", "pruned"):
        of = {row.program: row for row in rows if row.cache == cache}
        prefill, decode = of["prefill"], of["decode"]
        if about["memory"] is None or not prefill.result.fits or not decode.result.fits:
            continue
        weights, towers, free = about["weights"], about["towers"], about["memory"]
        while_decoding = decode.result.needs - decode.cache_bytes
        fixed = towers + max(while_decoding, prefill.result.needs)
        growing = max(prefill.result.needs - weights, 0) + decode.cache_bytes  # with the context
        found.append(
            Capacity(
                cache,
                decode.kv / decode.result.needs,
                fixed,
                int((free - fixed) / (decode.cache_bytes / (decode.rows // prefill.rows))) * prefill.rows,
                int(
                    about["context"]
                    * min((free - towers - weights) / growing, (free - towers - while_decoding) / decode.cache_bytes)
                ),
            )
        )
    return found


def print_report(about: dict[str, Any], rows: list[Row], console: Console) -> None:
    """Prints the tables for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in about["mesh"].items())
    memory = "" if about["memory"] is None else f" with {gib(about['memory'])} GiB for programs"
    table = Table(
        title=f"{about['model']}, bfloat16, context {about['context']:,}, {about['policy']} at budget "
        f"{about['budget']:g}\n{about['topology']}: {about['devices']} x {about['device']}{memory}, mesh {mesh}; "
        f"GiB per device",
        caption=NOTES,
        caption_justify="left",
    )
    for name in ("program", "cache", "rows"):
        table.add_column(name)
    for name in ("args", "outputs", "donated", "temps", "needs", "K+V", "TFLOP", "GB acc."):
        table.add_column(name, justify="right")
    table.add_column("fits")
    table.add_column("collectives")
    table.add_column("s", justify="right")
    for row in rows:
        result = row.result
        table.add_row(
            row.program,
            row.cache,
            str(row.rows),
            *(gib(size) for size in (result.arguments, result.outputs, result.donated, result.temporaries)),
            gib(result.needs),
            gib(row.kv),
            scaled(result.flops, 1e12),
            scaled(result.accessed, 1e9),
            fits(result, about["memory"]),
            "\n".join(f"{moved.number} {moved.kind}, {readable(moved.largest)}" for moved in result.moved),
            f"{result.seconds:.0f}",
        )
    console.print(table)
    weights, towers = gib(about["weights"]), gib(about["towers"])
    console.print(f"Per device: {weights} GiB of the decoder's weights; the towers, encoding, hold {towers} GiB more.")
    for each in capacities(about, rows):
        beyond = f" (the model tells {about['tokens']:,} apart)" if each.tokens > about["tokens"] else ""
        console.print(
            f"{each.cache} cache: K and V are {each.kv_share:.0%} of what decoding needs. By arithmetic, beside the "
            f"towers and the prefill of further rows: {each.rows:,} rows at this context, or {each.tokens:,} tokens of "
            f"context at this batch{beyond}.",
            soft_wrap=True,
        )


def gib(size: int | None) -> str:
    """Bytes for people."""
    return "" if size is None else f"{size / GIB:.2f}"


def scaled(number: float | None, unit: float) -> str:
    """A compiler's number, if it gave one."""
    return "" if number is None else f"{number / unit:.3g}"


def readable(size: int) -> str:
    """Bytes in the largest unit that leaves a whole number."""
    for unit in ("B", "kB", "MB"):
        if size < 10_000:
            return f"{size} {unit}"
        size = round(size / 1000)
    return f"{size} GB"


def fits(result: Compiled, memory: int | None) -> str:
    """Whether a program fits, in words."""
    if result.fits:
        return "" if memory is None else "yes"
    have = "" if memory is None else f" of {gib(memory)}"
    return f"does not fit: needs {gib(result.needs)}{have} GiB"
