"""One of several processes that train together: ``two_processes.py NUMBER OF PORT``; the first prints its losses."""

import json
import sys

import jax

DEVICES = 2
"""Of each process."""


def main() -> None:
    """Joins the others, trains on the devices of all, and prints every step's metrics as JSON."""
    number, processes, port = map(int, sys.argv[1:])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)
    from tests.mergenet_jax.sharded import mesh_of, train  # makes arrays, which must wait for the others

    mesh = mesh_of({"data": processes, "fsdp": DEVICES})
    assert len({device.process_index for device in mesh.devices.flat}) == processes
    _, told, _ = train(mesh)
    if number == 0:
        print(json.dumps(told), flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
