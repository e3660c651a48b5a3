"""Where programs run: meshes by option, and what is said of wrong ones."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from models import devices
from models.devices import Devices, make_mesh
from models.errors import UserError
from tests.processes import Processes


def test_a_mesh_of_the_axes_that_divide():
    mesh = make_mesh(jax.devices(), "data=2,fsdp=1,tensor=4", 4)
    assert dict(mesh.shape) == {"data": 2, "tensor": 4} and mesh.size == 8


def test_the_mesh_is_set_inside_alone():
    with Devices("fsdp=4,tensor=2").placed(2, "tiny"):
        assert dict(jax.sharding.get_mesh().shape) == {"fsdp": 4, "tensor": 2}
    assert jax.sharding.get_mesh().empty


def test_virtual_devices_of_a_cpu_are_used_when_asked_for():
    with Devices().placed(2, "tiny"):
        assert jax.sharding.get_mesh().empty


@pytest.mark.parametrize(
    ("mesh", "sentence"),
    [
        ("data=3", "This machine has 8 devices, but --mesh data 3 is 3."),
        ("rows=8", "--mesh 'rows=8' cannot be read; write sizes of data, fsdp, tensor like data=2,tensor=4."),
        ("data=2,data=4", "cannot be read"),
        ("tensor=8", "--mesh tensor=8 does not divide the 4 KV heads of tiny; tensor may be 1 or 2 or 4."),
    ],
)
def test_wrong_meshes(mesh, sentence):
    with pytest.raises(UserError) as error, Devices(mesh).placed(4, "tiny"):
        pass
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"processes": 2}, "--processes and --process need --coordinator, the HOST:PORT of process 0."),
        ({"distributed": True, "process": 0}, "leave it out beside"),
        ({"coordinator": "here"}, "--coordinator 'here' is no HOST:PORT such as 10.0.0.2:8476."),
        ({"coordinator": "a:99999", "processes": 2, "process": 0}, "is no HOST:PORT"),
        ({"coordinator": "a:1"}, "--coordinator needs --processes, how many there are, and --process"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--process 2 is none of 2 processes"),
    ],
)
def test_wrong_processes(given, sentence):
    with pytest.raises(UserError) as error:
        Devices(**given).join()
    assert sentence in str(error.value)


def test_a_coordinator_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(devices, "PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=f"No coordinator answers at 127.0.0.1:{port} .*; start process 0 there"):
        Devices(coordinator=f"127.0.0.1:{port}", processes=2, process=1).join()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_processes_that_do_not_come(monkeypatch):
    monkeypatch.setattr(devices, "PATIENCE", 1)
    port = free_port()
    with pytest.raises(UserError, match=f"Of 3 processes, 1 came to port {port} within 1 seconds; start all of them."):
        Devices(coordinator=f"127.0.0.1:{port}", processes=3, process=0).join()


def test_two_processes_of_one_number(monkeypatch):
    monkeypatch.setattr(devices, "PATIENCE", 20)
    join = {"coordinator": f"127.0.0.1:{free_port()}", "processes": 3}
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(Devices(**join, process=1).join) for _ in range(2)]
        with pytest.raises(UserError, match="Two processes have --process 1; give each its own."):
            Devices(**join, process=0).join()
        for other in others:
            with pytest.raises(UserError, match="Process 0 at .* has ended, or has met a process of this number"):
                other.result()


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as taken, pytest.raises(UserError, match="cannot be used here"):
        Devices(coordinator=f"127.0.0.1:{taken.getsockname()[1]}", processes=2, process=0).join()


@pytest.mark.complete
@pytest.mark.packaging
def test_distributed_without_a_pod():
    command = [sys.executable, "-m", "tests.models.waits", "--seconds", "1", "--distributed"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "error: --distributed found no TPU pod and no Slurm job here; elsewhere give" in found.stderr


@pytest.mark.complete
@pytest.mark.packaging
def test_processes_with_different_options():
    with Processes.start("tests.models.waits", ["--seconds", "1"], devices=1) as two:
        assert [status for status, _, _ in two.outputs(100)] == [0, 0]
    with Processes.start("tests.models.waits", ["--seconds", "1"], devices=1, own=(["--more"], [])) as two:
        for status, _, error in two.outputs(100):
            assert status == 2 and "error: The processes were started with different options; only --process" in error


@pytest.mark.complete
@pytest.mark.packaging
def test_sigterm_ends_a_program_that_does_not_hear_it():
    with Processes.start("tests.models.waits", ["--seconds", "100"], devices=1) as two:
        stream = two.started[1].stderr
        assert stream is not None and "joined\n" in iter(stream.readline, "")
        two.started[1].terminate()
        assert two.started[1].wait(10) == -signal.SIGTERM
