"""Tables for people."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Group
from rich.table import Table

from eval.answering import Answer

COLUMNS = ("kept t/v/a", "MB", "of full", "prefill s", "prune s", "tok/s", "roofline")


def answer_tables(answers: Sequence[Answer], clip: str) -> Group:
    """One table per question: what each policy said, what it kept, what it cost."""
    tables = [_table(question, list(rows)) for question, rows in groupby(answers, lambda answer: answer.question)]
    notes = (
        f"{clip}; kept: text/video/audio slots per layer and KV head; MB: K and V of the prompt; "
        "roofline: least time of a decode step by measured bandwidth, over its time"
    )
    return Group(*tables, notes)


def _table(question: str, answers: Sequence[Answer]) -> Table:
    prompt = "/".join(str(answers[0].tokens[name]) for name in ("text", "video", "audio"))
    table = Table(title=f"{question}  ({prompt} tokens)", title_justify="left", padding=(0, 0), pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("answer", overflow="fold")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=name == "kept t/v/a")
    for answer in answers:
        kept = [mean([layer[name] for layer in answer.kept]) for name in ("text", "video", "audio")]
        table.add_row(
            answer.policy,
            answer.answer,
            "/".join(f"{k:.0f}" for k in kept),
            f"{answer.cache_bytes / 1e6:.1f}",
            f"{answer.cache_bytes / answer.full_cache_bytes:.0%}",
            f"{answer.prefill_seconds:.2f}",
            f"{answer.prune_seconds:.3f}",
            f"{answer.decode_tokens_per_second:.1f}",
            f"{answer.roofline:.0%}",
        )
    return table


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
