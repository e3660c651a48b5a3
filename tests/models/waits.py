"""`python -m tests.models.waits --seconds N`: joins other processes, says so on standard error, and waits."""

import sys
import time

import tyro

from models import command
from models.devices import Devices, OnDevices


def main(seconds: float, more: bool = False, devices: OnDevices = Devices()) -> int:
    """Waits so many seconds."""
    del more

    def body() -> None:
        print("joined", file=sys.stderr, flush=True)
        time.sleep(seconds)

    return command.run(body, devices=devices)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
