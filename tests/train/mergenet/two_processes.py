"""One of two processes that train classifiers: ``python -m tests.train.mergenet.two_processes WORKDIR ...``."""

import sys
from pathlib import Path

import tyro
from jax.sharding import AxisType

from models import command
from models.devices import Devices, OnDevices
from tests.train.mergenet import tiny
from train.mergenet.loop import Run, train


def main(workdir: tyro.conf.Positional[Path], devices: OnDevices = Devices()) -> int:
    """The tiny recipe."""

    def body() -> None:
        tiny.register()
        with devices.placed(None, "tiny", AxisType.Auto):
            train(Run(tiny.recipe(), (0,), workdir))

    return command.run(body, devices=devices, hears_sigterm=True)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
