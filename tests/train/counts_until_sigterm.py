"""One of two processes that count steps until SIGTERM: ``python -m tests.train.counts_until_sigterm FOLDER ...``."""

import time
from pathlib import Path

import jax
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from models.devices import Devices, OnDevices
from train.checkpoint import check, finish, manager, restore, save
from train.preemption import preemption, stopped


def main(folder: tyro.conf.Positional[Path], devices: OnDevices = Devices()) -> None:
    """Adds one in every step to an array that both hold a part of; saves it in every fifth."""
    devices.join(hears_sigterm=True)
    sharding = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
    state = {"x": jax.make_array_from_callback((4, 3), sharding, lambda at: np.zeros((4, 3), np.float32)[at])}
    checkpoints = manager(folder, 2)
    step, state = restore(checkpoints, state, {}) or (0, state)
    add = jax.jit(lambda state: {"x": state["x"] + 1}, donate_argnums=0)
    with preemption() as preempted:
        while True:
            state, step = add(state), step + 1
            time.sleep(0.05)
            check(checkpoints)
            if preempted(step):
                save(checkpoints, step, state, {})
                finish(checkpoints)
                raise stopped(f"after step {step}, which is saved")
            if step % 5 == 0:
                save(checkpoints, step, state, {})


if __name__ == "__main__":
    tyro.cli(main)
