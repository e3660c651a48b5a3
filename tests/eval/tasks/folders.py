"""Folders of the official benchmarks' forms, with our own questions about small clips."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from eval.tasks.mvbench import CLIPS, PARTS
from models.media.clip_writer import write_clip

SOUND = 0.3 * np.sin(np.arange(4 * 16_000) / 5).astype(np.float32)


def clip(path: Path, seconds: int = 3, *, sound: bool = True) -> None:
    """A clip of two pictures a second, with a tone or without sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.zeros((2 * seconds, 64, 96, 3), np.uint8)
    frames[..., 0] = np.arange(2 * seconds, dtype=np.uint8)[:, None, None] * 20
    write_clip(path, frames, 2, SOUND[: seconds * 16_000] if sound else None)


def clips(paths: Iterable[Path]) -> None:
    """The same clip in several places."""
    first, *others = paths
    clip(first)
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(first.read_bytes())


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def music_avqa(folder: Path) -> None:
    rows = [
        ("a", '["Audio", "Counting"]', "How many musical instruments were heard throughout the video?", "[]", "two"),
        ("a", '["Visual", "Location"]', "What is the instrument on the <LR> of <Object>?", '["left", "drum"]', "tuba"),
        ("b", '["Audio", "Comparative"]', "Is the <Object> louder than the <Object>?", '["flute", "drum"]', "no"),
    ]
    names = ("video_id", "type", "question_content", "templ_values", "anser")
    _json(folder / "avqa-test.json", [dict(zip(names, row, strict=True)) for row in rows])
    clips(folder / f"video/{name}.mp4" for name in "ab")


def avsd(folder: Path) -> None:
    turns = [
        {"question": "is it a man ?", "answer": "yes , it is a man"},
        {"question": "does he speak ?", "answer": "no , he is silent"},
        {"question": "what does he hold ?", "answer": ["he holds a cup .", "a cup"]},
    ]
    first = [{"question": "is there sound ?", "answer": "yes there is"}]
    dialogs = [{"image_id": "A1", "dialog": turns}, {"image_id": "B2", "dialog": first}]
    _json(folder / "test_set4DSTC10-AVSD_multiref+reason.json", {"dialogs": dialogs, "version": "1"})
    clips(folder / f"videos/{name}.mp4" for name in ("A1", "B2"))


def mvbench(folder: Path) -> None:
    for task in CLIPS:
        entry = {"video": "a.mp4", "question": f"{task}?", "candidates": ["one", "two", "three"], "answer": "two"}
        part = {"start": 1.0, "end": 3.0} if task in PARTS else {}
        _json(folder / f"json/{task.lower().replace(' ', '_')}.json", [entry | part])
    clips(folder / f"video/{place}/a.mp4" for place in dict.fromkeys(CLIPS.values()))


def worldsense(folder: Path) -> None:
    def task(kind: str, answer: str) -> dict[str, Any]:
        choices = ["A. A bell.", "B. A dog.", "C. Rain."]
        return {"task_domain": kind, "task_type": "Audio Recognition", "question": "What is heard?"} | {
            "candidates": choices,
            "answer": answer,
        }

    about = {"duration": "<1min", "domain": "Music", "sub_category": "Covers", "audio_class": ["Music", "Event"]}
    videos = {
        "v1": about | {"video_caption": "", "task0": task("Recognition", "B"), "task1": task("Reasoning", "C")},
        "v2": about | {"video_caption": "", "task0": task("Recognition", "A")},
    }
    _json(folder / "worldsense_qa.json", videos)
    clips(folder / f"videos/{name}.mp4" for name in videos)


def daily_omni(folder: Path) -> None:
    def entry(video: str, kind: str, answer: str) -> dict[str, Any]:
        choices = ["A. A bell", "B. A dog's bark", "C. Rain", "D. Wind"]
        about = {"video_id": video, "Type": kind, "video_category": "Music", "video_duration": "30s"}
        return {"Question": "What is heard first?", "Choice": choices, "Answer": answer} | about

    entries = [entry("x", "Event Sequence", "B"), entry("y", "Reasoning", "A"), entry("x", "Reasoning", "D")]
    _json(folder / "qa.json", entries)
    clips(folder / f"Videos/{name}/{name}_video.mp4" for name in "xy")


def video_mme(folder: Path) -> None:
    about = {"domain": "Knowledge", "sub_category": "Geography", "task_type": "Counting Problem"}
    choices = ["A. 1.", "B. 2.", "C. 3.", "D. 4."]
    rows = [
        {"videoID": video, "duration": length, "question": "How many?", "options": choices, "answer": answer} | about
        for video, length, answer in (("s_1", "short", "A"), ("s_1", "short", "B"), ("l_1", "long", "D"))
    ]
    _json(folder / "videomme.json", rows)
    clips(folder / f"data/{name}.mp4" for name in ("s_1", "l_1"))


def avhbench(folder: Path) -> None:
    rows = [
        ("00191", "Video-driven Audio Hallucination", "Is the dog making sound in the audio?", "Yes"),
        ("00191", "Audio-driven Video Hallucination", "Is the bell visible in the video?", "No"),
        ("00191", "AV Captioning", "Describe what you see and hear in a single sentence.", "A dog barks."),
        ("00192", "AV Matching", "Are the contexts of audio and visual content matching?", "No"),
    ]
    _json(folder / "QA.json", [dict(zip(("video_id", "task", "text", "label"), row, strict=True)) for row in rows])
    clips(folder / f"videos/{name}.mp4" for name in ("00191", "00192"))


def omnivideobench(folder: Path) -> None:
    def question(audio: str, answer: str) -> dict[str, Any]:
        choices = ["A.One", "B.Two", "C.Three", "D.Four"]
        kind = {"question_type": "counting", "audio_type": audio, "reasoning_steps": [], "answer": "Two"}
        return {"question": "How many barks?", "options": choices, "correct_option": answer} | kind

    videos = [
        {"video": "video_1", "video_type": "Vlog", "duration": "00:03", "questions": [question("Sound", "B")]},
        {"video": "video_2", "video_type": "Ego", "duration": "00:03", "questions": [question("Speech", "C")]},
    ]
    _json(folder / "data.json", videos)
    clips(folder / f"videos/{name}.mp4" for name in ("video_1", "video_2"))


FOLDERS = {
    "music_avqa": music_avqa,
    "avsd": avsd,
    "mvbench": mvbench,
    "worldsense": worldsense,
    "daily_omni": daily_omni,
    "video_mme": video_mme,
    "avhbench": avhbench,
    "omnivideobench": omnivideobench,
}
"""By task, what writes its folder."""
