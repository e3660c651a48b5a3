"""Commands in several local processes, each with CPU devices of its own, joined as on several hosts."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Self

DEVICES = 4


@dataclasses.dataclass
class Processes:
    """Running processes; as a context manager it kills what still runs at the end."""

    started: list[subprocess.Popen[str]]

    @classmethod
    def start(
        cls,
        module: str,
        arguments: Sequence[str],
        count: int = 2,
        devices: int = DEVICES,
        own: Sequence[Sequence[str]] = (),
    ) -> Self:
        """Starts `python -m MODULE ARGUMENTS --coordinator ... --processes ... --process ...`, `count` times.

        `own` are further arguments of each process.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        join = ("--coordinator", f"127.0.0.1:{port}", "--processes", str(count))
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        return cls(
            [
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", module, *arguments, *join, "--process", str(number)),
                        *(own[number] if own else ()),
                    ],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for number in range(count)
            ]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.started:
            one.kill()
            one.communicate()

    def outputs(self, seconds: float) -> list[tuple[int, str, str]]:
        """Waits: exit status, standard output and standard error of each."""
        end = time.monotonic() + seconds
        found = []
        for one in self.started:
            out, err = one.communicate(timeout=max(1, end - time.monotonic()))
            found.append((one.returncode, out, err))
        return found

    def kill(self, number: int) -> None:
        """Ends one as an operating system out of memory does."""
        self.started[number].send_signal(signal.SIGKILL)
