"""Code blocks of the documentation."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    """The Python blocks of a page, each preceded by empty lines, so that errors name the page's line."""
    text = (ROOT / page).read_text()
    return ["\n" * text.count("\n", 0, found.start(1)) + found[1] for found in BLOCK.finditer(text)]


def run(page: str, names: dict[str, Any], which: list[str] | None = None) -> dict[str, Any]:
    """Runs a page's blocks (or `which` of them) one after the other, as a reader would; returns what they define."""
    for block in blocks(page) if which is None else which:
        exec(compile(block, page, "exec"), names)
    return names
