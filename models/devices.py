"""The devices that a program runs on: a mesh of them, in one process or several (`jax.distributed`)."""

import contextlib
import dataclasses
import json
import math
import re
import socket
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from models.errors import UserError

AXES = ("data", "fsdp", "tensor")
COORDINATOR = re.compile(r"(?P<host>[^:\s]+):(?P<port>\d{1,5})")
GO = b"!"
"""What process 0 sends when all have come."""
PATIENCE = 60
"""Seconds to wait for the other processes at the start."""
HEARTBEAT = 30
"""Seconds after which a process that is not heard of ends the others."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where a program runs: by default on one device, or on all that there are."""

    mesh: str | None = None
    """How devices are divided: sizes of data (rows of a batch), fsdp (rows, and stored weights) and tensor (heads),
    such as data=4,tensor=2. Default: all devices, tensor as large as the model's KV heads allow."""
    distributed: bool = False
    """Join the other processes of a TPU pod or a Slurm job, which start the same command."""
    coordinator: str | None = None
    """Elsewhere: HOST:PORT of process 0, with --processes and --process; every process starts the same command."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Number of this one, from 0."""

    @property
    def several(self) -> bool:
        """Whether there are other processes to join."""
        return self.distributed or self.coordinator is not None

    def join(self, *, hears_sigterm: bool = False) -> None:
        """Joins the other processes, if there are any; before the first use of a device.

        Args:
            hears_sigterm: whether the program asks `train.preemption`; otherwise SIGTERM ends it at once.

        Raises:
            UserError: on options that do not fit together, or if the others do not answer.
        """
        given = (self.coordinator, self.processes, self.process)
        if self.distributed and given != (None, None, None):
            raise UserError("--distributed finds the other processes by itself; leave it out beside --coordinator.")
        if not self.several and given != (None, None, None):
            raise UserError("--processes and --process need --coordinator, the HOST:PORT of process 0.")
        if not self.several:
            return
        jax.config.update("jax_enable_preemption_service", hears_sigterm)
        if "cpu" in (jax.config.values["jax_platforms"] or ""):
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        about: dict[str, Any] = {"initialization_timeout": PATIENCE, "heartbeat_timeout_seconds": HEARTBEAT}
        if self.coordinator is not None:
            about |= self._checked(self.coordinator)
        try:
            jax.distributed.initialize(**about)
        except (RuntimeError, ValueError) as error:
            reason = _first_line(error)
            if self.distributed and "should be defined" in reason:  # as of coordinator_address
                raise UserError(
                    "--distributed found no TPU pod and no Slurm job here; elsewhere give --coordinator, --processes "
                    "and --process."
                ) from error
            where = self.coordinator or "the job's coordinator"
            raise UserError(
                f"The processes did not find each other through {where} within {PATIENCE} seconds ({reason}); start "
                "all of them."
            ) from error

    def _checked(self, coordinator: str) -> dict[str, Any]:
        found = COORDINATOR.fullmatch(coordinator)
        if found is None or not 0 < int(found["port"]) < 2**16:
            raise UserError(f"--coordinator {coordinator!r} is no HOST:PORT such as 10.0.0.2:8476.")
        if self.processes is None or self.process is None:
            raise UserError("--coordinator needs --processes, how many there are, and --process, this one's number.")
        if not 0 <= self.process < self.processes:
            raise UserError(f"--process {self.process} is none of {self.processes} processes; they count from 0.")
        host, port = found["host"], int(found["port"])
        if self.process == 0:
            _await_all(port, self.processes)
        else:
            _present(host, port, self.process)
        return {
            "coordinator_address": coordinator,
            "num_processes": self.processes,
            "process_id": self.process,
        }

    @contextlib.contextmanager
    def placed(self, kv_heads: int | None, model: str, kind: AxisType = AxisType.Explicit) -> Iterator[None]:
        """Runs what is inside on the mesh; without --mesh and with one device there is none.

        Args:
            kv_heads: K of the model; None where "tensor" need not divide it.
            model: its name.
            kind: of the mesh's axes.

        Raises:
            UserError: if the mesh fits neither the devices nor the model.
        """
        devices = jax.devices()
        one = len(devices) == 1 or (devices[0].platform == "cpu" and not self.several)  # CPUs divided are no faster
        if self.mesh is None and one:
            yield
            return
        mesh = make_mesh(devices, self.mesh, kv_heads, kind=kind)
        tensor = mesh.shape.get("tensor", 1)
        if kv_heads is not None and kv_heads % tensor:
            fitting = [str(n) for n in range(1, kv_heads + 1) if kv_heads % n == 0 and len(devices) % n == 0]
            raise UserError(
                f"--mesh tensor={tensor} does not divide the {kv_heads} KV heads of {model}; tensor may be "
                f"{' or '.join(fitting)}."
            )
        with jax.set_mesh(mesh):
            yield


OnDevices = Annotated[Devices, tyro.conf.arg(name="")]
"""As a field of a program's options: its fields are options of their own."""


def make_mesh(
    devices: Sequence[Any],
    axes: str | None,
    kv_heads: int | None,
    where: str = "This machine",
    kind: AxisType = AxisType.Explicit,
) -> Mesh:
    """A mesh of all devices, of the axes that are longer than 1.

    Args:
        devices: the devices.
        axes: sizes such as "data=2,tensor=4"; None: "tensor" as large as the KV heads can be divided, the rest "data".
        kv_heads: K; None for no "tensor" of itself.
        where: name of the devices together.
        kind: of its axes.

    Raises:
        UserError: if `axes` cannot be read, or does not multiply to the number of devices.
    """
    number = len(devices)
    if axes is None:
        tensor = math.gcd(number, kv_heads or 1)
        sizes = {"data": number // tensor, "tensor": tensor}
    else:
        sizes = _parsed(axes)
    if math.prod(sizes.values()) != number:
        product = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        plural = "s" * (number != 1)
        raise UserError(f"{where} has {number} device{plural}, but --mesh {product} is {math.prod(sizes.values())}.")
    # An axis of one device divides nothing, yet JAX may refuse to reshape along it.
    sizes = {axis: size for axis, size in sizes.items() if size > 1} or {"data": 1}
    kinds = (kind,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)


def is_first() -> bool:
    """Whether this process prints, and writes what all share."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """What process 0 gives, in all processes; ready for JSON."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_first() else np.zeros(0, np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    sent = multihost_utils.broadcast_one_to_all(data if is_first() else np.zeros(length, np.uint8))
    return json.loads(np.asarray(sent).tobytes())


def _parsed(axes: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in axes.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES or name in sizes or not re.fullmatch(r"[1-9]\d*", size):
            raise UserError(f"--mesh {axes!r} cannot be read; write sizes of {', '.join(AXES)} like data=2,tensor=4.")
        sizes[name] = int(size)
    return sizes


def _await_all(port: int, processes: int) -> None:
    """Waits in process 0 for all others, before jax does: its own client aborts where one does not come.

    Raises:
        UserError: if they do not come, or two have one number.
    """
    end, came = time.monotonic() + PATIENCE, {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise UserError(
                f"Port {port} cannot be used here ({error.strerror}); name another --coordinator."
            ) from error
        while len(came) < processes - 1:
            server.settimeout(max(end - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                raise UserError(
                    f"Of {processes} processes, {len(came) + 1} came to port {port} within {PATIENCE} seconds; start "
                    "all of them."
                ) from None
            connection.settimeout(5)
            with contextlib.suppress(OSError):  # whatever else looks at the port
                number = int.from_bytes(connection.recv(4))
                if number in came:
                    raise UserError(f"Two processes have --process {number}; give each its own.")
                if 0 < number < processes:
                    came[number] = connection
        for connection in came.values():
            connection.sendall(GO)


def _present(host: str, port: int, number: int) -> None:
    """Waits until process 0 has met all processes and listens: jax's own client ends the process where nobody does.

    Raises:
        UserError: if it does not answer, or has ended.
    """
    with _connected(host, port) as connection:
        connection.settimeout(2 * PATIENCE)
        connection.sendall(number.to_bytes(4))
        with contextlib.suppress(OSError):
            if connection.recv(1) == GO:
                _connected(host, port).close()
                return
    raise UserError(f"Process 0 at {host}:{port} has ended, or has met a process of this number; see what it says.")


def _connected(host: str, port: int) -> socket.socket:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((host, port), timeout=5)
        except OSError as error:
            if time.monotonic() > end:
                reason = error.strerror or "no answer"
                raise UserError(
                    f"No coordinator answers at {host}:{port} ({reason}); start process 0 there, and open the port."
                ) from error
        time.sleep(0.5)


def check_same_command() -> None:
    """Checks in all processes that they were started alike; CPUs' collectives print on standard output.

    Raises:
        UserError: if not.
    """
    ours = re.sub(r"--process[\0=]\d+", "", "\0".join(sys.argv[1:]))
    all_ours = multihost_utils.process_allgather(np.uint32(zlib.crc32(ours.encode(errors="replace"))))
    if len(set(np.ravel(all_ours).tolist())) > 1:
        raise UserError("The processes were started with different options; only --process may differ.")


def _first_line(error: BaseException) -> str:
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0]:.200}".rstrip(".")
