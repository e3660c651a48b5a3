"""SIGTERM: what a pod gets before its maintenance, and a job before its time is up."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from jax import distributed
from jax.experimental import multihost_utils

STATUS = 128 + signal.SIGTERM
"""Exit status of a run that SIGTERM has ended, as shells give it: 143."""


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Within this context SIGTERM does not end the process, but is heard.

    In a run of one process the handler is ours. Where `jax.distributed` is initialized it is JAX's, which tells the
    other processes, so that all end after the same step.

    Yields:
        A function that says whether the run is to end after a step; to be called in every process after every step.
    """
    asked = threading.Event()
    # Other threads may not have handlers, and JAX's is not to be replaced.
    ours = threading.current_thread() is threading.main_thread() and not distributed.is_initialized()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set()) if ours else None
    try:
        yield lambda step: asked.is_set() or multihost_utils.reached_preemption_sync_point(step)
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def stopped(where: str) -> SystemExit:
    """The end of a run that SIGTERM has stopped, with a sentence about it on standard error.

    Args:
        where: such as "after step 12, which is saved".
    """
    print(f"stopped by SIGTERM {where}; the same command continues the run", file=sys.stderr, flush=True)
    return SystemExit(STATUS)
