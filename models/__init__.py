"""Audio-video language models, their parts, and how they are asked.

    model = models.load("smolav")
    clip = models.encode(model, "clip.mp4")
    print(models.answer(model, clip, "What is shown second?").text)

What is named here is imported when it is first used: most of this package needs neither PyAV nor tokenizers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.answering import Answer, EncodedClip, answer, encode
    from models.errors import UserError
    from models.registry import kv_heads, load

__all__ = ["Answer", "EncodedClip", "UserError", "answer", "encode", "kv_heads", "load"]


def __getattr__(name: str) -> Any:
    if name in ("kv_heads", "load"):
        from models import registry

        return getattr(registry, name)
    if name == "UserError":
        from models.errors import UserError

        return UserError
    if name in ("Answer", "EncodedClip", "answer", "encode"):
        from models import answering

        return getattr(answering, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
