"""Wall-clock time of one call."""

import time
from collections.abc import Callable
from typing import Any

import jax


def fastest(
    run: Callable[..., Any], repeats: int, prepare: Callable[[], tuple[Any, ...]] = lambda: ()
) -> tuple[Any, float]:
    """The last result of `run(*prepare())`, and the seconds of its fastest run after a first one that compiles.

    Args:
        run: what is timed, until its result is ready.
        repeats: timed runs, at least 1.
        prepare: makes the arguments of each run, untimed, for a `run` that donates them.
    """
    jax.block_until_ready(run(*prepare()))
    result, best = None, float("inf")
    for _ in range(repeats):
        result = None  # its memory is free for the next
        arguments = jax.block_until_ready(prepare())
        start = time.perf_counter()
        result = jax.block_until_ready(run(*arguments))
        best = min(best, time.perf_counter() - start)
    return result, best
