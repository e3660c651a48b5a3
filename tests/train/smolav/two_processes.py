"""One of two processes that train SmolAV at toy size: ``python -m tests.train.smolav.two_processes WORKDIR ...``."""

import sys
from pathlib import Path

import tyro
from jax.sharding import AxisType

from models import command
from models.devices import Devices, OnDevices


def main(workdir: tyro.conf.Positional[Path], devices: OnDevices = Devices()) -> int:
    """What `tests.train.smolav.test_main` trains."""

    def body() -> None:
        from tests.train.smolav import test_main  # makes arrays, which must wait for the others

        with devices.placed(None, "SmolAV", AxisType.Auto):
            test_main.train_in(workdir)

    return command.run(body, devices=devices, hears_sigterm=True)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
