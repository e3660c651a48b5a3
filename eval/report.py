"""Tables for people."""

from collections.abc import Sequence

from rich.table import Table

from eval.answering import Answer


def answer_table(answers: Sequence[Answer], title: str) -> Table:
    """One row per answer: what was said, what was kept, what it cost."""
    first = answers[0]
    tokens = ", ".join(f"{count} {name}" for name, count in first.tokens.items())
    table = Table(title=f"{title}: {tokens} tokens", caption="kept: slots per layer and KV head, averaged")
    for name in ("question", "policy", "answer"):
        table.add_column(name, overflow="fold")
    for name in ("kept text", "video", "audio", "cache MB", "of full", "prefill s", "prune s", "tokens/s", "roofline"):
        table.add_column(name, justify="right")
    question = None
    for answer in answers:
        if question is not None and answer.question != question:
            table.add_section()
        kept = [mean([layer[name] for layer in answer.kept]) for name in ("text", "video", "audio")]
        table.add_row(
            "" if answer.question == question else answer.question,
            answer.policy,
            answer.answer,
            *(f"{k:.0f}" for k in kept),
            f"{answer.cache_bytes / 1e6:.1f}",
            f"{answer.cache_bytes / answer.full_cache_bytes:.0%}",
            f"{answer.prefill_seconds:.2f}",
            f"{answer.prune_seconds:.3f}",
            f"{answer.decode_tokens_per_second:.1f}",
            f"{answer.roofline:.0%}",
        )
        question = answer.question
    return table


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
