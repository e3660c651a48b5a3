"""Tables for people."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Group
from rich.table import Table
from rich.text import Text

from eval.answering import Answered
from models import Answer

COLUMNS = ("kept t/v/a", "MB", "of full")
NAMES = ("text", "video", "audio")
TIMES = ("prefill s", "prune s", "tok/s", "roofline")


def answer_tables(answers: Sequence[Answered], clip: str) -> Group:
    """One table per question: each policy's answer, what it kept, and where it was measured the time it took."""
    tables = [_table(question, list(rows)) for question, rows in groupby(answers, lambda row: row.answer.question)]
    notes = f"{clip}; kept: text/video/audio slots per layer and KV head; MB: K and V of the prompt"
    if any(row.timing for row in answers):
        notes += "; roofline: least time of a decode step by measured bandwidth, over its time"
    return Group(*tables, Text(notes))


def summary(row: Answered) -> str:
    """What was kept for an answer, in a line."""
    found = row.answer
    tokens = "/".join(str(found.prompt_tokens[name]) for name in NAMES)
    used, full = found.cache_bytes.prompt / 1e6, found.full_cache_bytes / 1e6
    size = f"{used:.1f} of {full:.1f} MB ({used / full:.0%})"
    return f"[{row.policy}: kept {_kept(found)} of {tokens} text/video/audio tokens, {size}]"


def _table(question: str, rows: Sequence[Answered]) -> Table:
    timed = any(row.timing for row in rows)
    prompt = "/".join(str(rows[0].answer.prompt_tokens[name]) for name in NAMES)
    table = Table(title=Text(f"{question}  ({prompt} tokens)"), title_justify="left", padding=(0, 0), pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("answer", overflow="fold")
    for name in (*COLUMNS, *(TIMES if timed else ())):
        table.add_column(name, justify="right", no_wrap=name == "kept t/v/a")
    for row in rows:
        found, timing = row.answer, row.timing
        cells = [
            _kept(found),
            f"{found.cache_bytes.prompt / 1e6:.1f}",
            f"{found.cache_bytes.prompt / found.full_cache_bytes:.0%}",
        ]
        if timing is not None:
            cells += [
                f"{timing.prefill_seconds:.2f}",
                f"{timing.prune_seconds:.3f}",
                f"{timing.decode_tokens_per_second:.1f}",
                f"{timing.roofline:.0%}",
            ]
        table.add_row(Text(row.policy), Text(found.text), *cells)
    return table


def _kept(found: Answer) -> str:
    """Mean slots per layer, by modality."""
    return "/".join(f"{mean([layer[name] for layer in found.kept]):.0f}" for name in NAMES)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
