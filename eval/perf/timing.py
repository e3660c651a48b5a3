"""Wall-clock time of calls."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax


def fastest(
    run: Callable[..., Any],
    repeats: int,
    prepare: Callable[[], tuple[Any, ...]] = lambda: (),
    *,
    compiled: bool = False,
) -> tuple[Any, float]:
    """The last result of `run(*prepare())`, and the seconds of its fastest run after a first one that compiles.

    Args:
        run: what is timed, until its result is ready.
        repeats: timed runs, at least 1.
        prepare: makes the arguments of each run, untimed, for a `run` that donates them.
        compiled: whether it ran before, so that no first run is needed.
    """
    if not compiled:
        jax.block_until_ready(run(*prepare()))
    result, best = None, float("inf")
    for _ in range(repeats):
        result = None  # its memory is free for the next
        arguments = jax.block_until_ready(prepare())
        start = time.perf_counter()
        result = jax.block_until_ready(run(*arguments))
        best = min(best, time.perf_counter() - start)
    return result, best


def in_turns(
    runs: Mapping[str, Callable[..., Any]],
    repeats: int,
    prepare: Mapping[str, Callable[[], tuple[Any, ...]]] = MappingProxyType({}),
) -> tuple[dict[str, Any], dict[str, float]]:
    """Of each run, its last result and the seconds of its fastest call after a first one that compiles.

    They are called in turns, so that what else the machine does slows all of them.

    Args:
        runs: what is timed, until its result is ready, by name.
        repeats: timed calls of each, at least 1.
        prepare: makes the arguments of each call, untimed, where a run has any.
    """
    results, best = dict.fromkeys(runs), dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            results[name], seconds = fastest(run, 1, prepare.get(name, tuple), compiled=True)
            if turn:
                best[name] = min(best[name], seconds)
    return results, best
