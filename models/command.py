"""What every command does alike."""

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TextIO

import jax
from rich.console import Console

from models.devices import Devices, check_same_command, is_first
from models.errors import UserError
from models.files import NotWritten
from models.hub.package_index import cache_root

ADVICE = {
    errno.ENOSPC: "make room there, or name another place",
    errno.EDQUOT: "make room in your quota, or name another place",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or name another place",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
}
"""What helps where the operating system refuses a file."""


def run(
    body: Callable[[], None],
    *,
    keep_programs: bool = False,
    devices: Devices = Devices(),
    hears_sigterm: bool = False,
) -> int:
    """Runs a command. Characters that the output's encoding does not have are printed as question marks.

    Args:
        body: the command.
        keep_programs: whether its compiled programs are kept for later runs, in the user's cache or where
            JAX_COMPILATION_CACHE_DIR says.
        devices: joins the other processes before the command runs; only the first one writes to standard output.
        hears_sigterm: whether the command ends by itself after SIGTERM (`train.preemption`).

    Returns:
        The exit status: 0; 2 after a `UserError` or a `NotWritten`, or where a file or the standard output is refused
        for a reason of `ADVICE`, each a sentence on standard error; 1 where the reader of a pipe has gone.
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
        devices.join(hears_sigterm=hears_sigterm)
        with _several() if devices.several else contextlib.nullcontext():
            if devices.several:
                check_same_command()
            body()
            sys.stdout.flush()
    except UserError as error:
        return _fail(f"{error}", devices)
    except BrokenPipeError:  # as under `| head`
        _discard_output()
        return 1
    except OSError as error:
        if not _is_told(error):
            raise
        where = error.filename or "a file"
        if not error.filename and _refuses(sys.stdout):
            where = "standard output"
            _discard_output()
        advice = ADVICE.get(error.errno or 0, "name another place")
        return _fail(f"{where}: {error.strerror}; {advice}.", devices)
    return 0


@contextlib.contextmanager
def _several() -> Iterator[None]:
    """Lets the first of several processes print, and ends this one at once where it fails."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", errors="replace") if is_first() else Path(os.devnull).open("w")
    os.dup2(2, 1)  # the libraries of CPUs' collectives print on standard output
    try:
        with own, contextlib.redirect_stdout(own):
            yield
    except BaseException as error:
        if isinstance(error, UserError | SystemExit | BrokenPipeError) or _is_told(error):
            raise
        traceback.print_exc()
        _leave(1)


def _is_told(error: BaseException) -> bool:
    """Whether an error is of an output that is refused, which a sentence says."""
    return isinstance(error, NotWritten) or (isinstance(error, OSError) and error.errno in ADVICE)


def _leave(status: int) -> NoReturn:
    """Ends one of several processes: an orderly end would wait for those that still compute with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _fail(sentence: str, devices: Devices) -> int:
    Console(stderr=True).print(f"error: {sentence}", markup=False, highlight=False, soft_wrap=True)
    if devices.several:
        _leave(2)
    return 2


def _refuses(stream: TextIO) -> bool:
    """Whether not even the end of a line can be written; a stream without a buffer does not say it otherwise."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


def _discard_output() -> None:
    """Lets nothing more be written, which the interpreter would try at its end."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def moved(new: str) -> int:
    """Tells where an old command went; the exit status 2."""

    def body() -> None:
        raise UserError(f"This command is `python -m {new}` now, with the same options.")

    return run(body)


def check_output(out: Path | None) -> None:
    """Checks before the work that its result can be written.

    Raises:
        UserError: if the folder of `out` does not exist, `out` is a folder, or either may not be written.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write {out.name} into; make it first.")
    if out is not None and out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it.")
    if out is not None:
        place = out if out.exists() else out.absolute().parent
        if not os.access(place, os.W_OK):
            raise UserError(f"{place} may not be written; change its permissions, or name another place.")
