"""Devices to compile for: TPU topologies of which no chip need be there, and virtual CPU devices."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from models.errors import UserError

CPU = re.compile(r"cpu:([1-9]\d{0,3})")
TPU = re.compile(r"[a-z]+\d+[a-z]*:\d+(x\d+)*")
GIB = 2**30
MEMORY = {
    "TPU v2": 7.48,
    "TPU v3": 15.48,
    "TPU v4": 15.25,
    "TPU v5": 95.74,
    "TPU v5 lite": 15.75,
    "TPU v6 lite": 31.25,
    "TPU7x": 94.75,
}
"""GiB of a device's memory that programs may use, by kind of device: as libtpu 0.0.42 says when it refuses one."""
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5e-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Keeps libtpu from asking the network where it is, from complaining, and from claiming chips that are there."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices by name.

    Attributes:
        name: as given.
        devices: to make a mesh of.
        memory: bytes of a device that programs may use; None if that is not known.
    """

    name: str
    devices: Sequence[Any]
    memory: int | None

    @property
    def kind(self) -> str:
        """What one device is."""
        return self.devices[0].device_kind


def find_topology(name: str) -> Topology:
    """The devices of cpu:8, v5e:4x4, v5p:2x2x2 and the like.

    Raises:
        UserError: if there is no such topology, or libtpu is not installed.
    """
    if found := CPU.fullmatch(name):
        number = int(found[1])
        if jax.config.jax_num_cpu_devices != number:  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_num_cpu_devices", number)
        return Topology(name, jax.devices("cpu"), None)
    if not TPU.fullmatch(name):
        raise UserError(f"There is no topology {name!r}; give one like v5e:4x4, v5p:2x2x2 or cpu:8.")
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2].rstrip(".")
        raise UserError(f"There is no topology {name!r}; libtpu says: {reason}.") from error
    except RuntimeError as error:
        raise UserError(
            f"Compiling for {name} needs libtpu, which is not installed: pip install 'acckv-jax[tpu]'."
        ) from error
    memory = MEMORY.get(devices[0].device_kind)
    return Topology(name, devices, None if memory is None else int(memory * GIB))
