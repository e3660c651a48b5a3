"""One of several processes that train together: ``python -m tests.mergenet_jax.two_processes ...``."""

import json

import jax
import tyro

from models.devices import Devices, OnDevices, is_first


def main(devices: OnDevices = Devices()) -> None:
    """Joins the others, trains on the devices of all, and prints every step's metrics as JSON in the first."""
    devices.join()
    from tests.mergenet_jax.sharded import mesh_of, train  # makes arrays, which must wait for the others

    mesh = mesh_of({"data": jax.process_count(), "fsdp": jax.local_device_count()})
    assert len({device.process_index for device in mesh.devices.flat}) == jax.process_count()
    _, told, _ = train(mesh)
    if is_first():
        print(json.dumps(told), flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    tyro.cli(main)
