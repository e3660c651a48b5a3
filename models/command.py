"""What every command does alike."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import jax
from rich.console import Console

from models.devices import Devices, is_first
from models.errors import UserError
from models.hub.package_index import cache_root


def run(body: Callable[[], None], *, keep_programs: bool = False, devices: Devices = Devices()) -> int:
    """Runs a command. Characters that the output's encoding does not have are printed as question marks.

    Args:
        body: the command.
        keep_programs: whether its compiled programs are kept for later runs, in the user's cache or where
            JAX_COMPILATION_CACHE_DIR says.
        devices: joins the other processes before the command runs; only the first one writes to standard output.

    Returns:
        The exit status: 0, or 2 after a `UserError`, whose sentence is printed to standard error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        if keep_programs:
            if not jax.config.values["jax_compilation_cache_dir"]:
                jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
            # A command has dozens of small programs, too, which take seconds together.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        devices.join()
        with _output_of_the_first() if devices.several else contextlib.nullcontext():
            body()
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        if devices.several:
            leave(2)
        return 2
    except BaseException:
        if not devices.several:
            raise
        traceback.print_exc()
        leave(1)
    return 0


def leave(status: int) -> NoReturn:
    """Ends one of several processes at once: an orderly end would wait for those that still compute with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def _output_of_the_first() -> Iterator[None]:
    if is_first():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def moved(new: str) -> int:
    """Tells where an old command went; the exit status 2."""

    def body() -> None:
        raise UserError(f"This command is `python -m {new}` now, with the same options.")

    return run(body)


def check_output(out: Path | None) -> None:
    """Checks before the work that its result can be written.

    Raises:
        UserError: if the folder of `out` does not exist, or `out` is a folder.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write {out.name} into; make it first.")
    if out is not None and out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it.")
