"""Where and with what a scoreboard was made, so that it can be made again."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("acckv-jax", "jax", "jaxlib", "flax", "numpy")


def about_run(command: str) -> dict[str, Any]:
    """Versions, devices, revision and time of this run, ready for JSON.

    Args:
        command: that makes the scoreboard.
    """
    device = jax.devices()[0]
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": _revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": f"{len(jax.devices())} x {device.device_kind} ({device.platform}, {platform.machine()})",
    }


def _revision() -> str | None:
    """The commit of a checkout, with a plus if files differ from it; None without one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
