"""Audio-video language models, their parts, and how they are asked.

    model = models.load("smolav")

What is named here is imported when it is first used: most of this package needs neither PyAV nor tokenizers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.registry import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from models.registry import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
