"""What is asked about SmolAV's clip, and what is right."""

from pathlib import Path
from typing import Any

import models.smolav

DEMO = Path(models.smolav.__file__).parent / "demo"


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The clip with its sound, and a question."""
    video = {"type": "video", "url": str(DEMO / "demo.mp4")}
    return [{"role": "user", "content": [video, {"type": "text", "text": document["question"]}]}]


def score(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the answer is the right word."""
    return {"right": float(results[0] == document["answer"])}
