import json
import shutil

import numpy as np
import pytest

from models.media.clip import Sampling, read_clip
from train.data.questions import questions
from train.data.sources import digits, instruments
from train.smolav.demo_clip import CLIP, FOLDER, PHOTOS, QUESTIONS, RECORDINGS, build


def test_bundled_clip_shows_and_plays_what_its_timeline_says():
    path = FOLDER / "demo.mp4"
    assert path.stat().st_size <= 1_000_000
    media = read_clip(path, Sampling(size=(112, 112)))
    assert media.frames is not None and media.audio is not None
    assert len(media.frames) == CLIP.seconds
    photos = [read_clip(FOLDER / "photos" / f"{name}.jpg", Sampling(size=(112, 112))).frames for name in PHOTOS]
    for second, picture in enumerate(CLIP.picture_ids):
        differences = [np.abs(media.frames[second] - p.astype(np.float32)).mean() for p in photos if p is not None]
        assert int(np.argmin(differences)) == picture and differences[picture] < 8
    assert abs(len(media.audio) / 16_000 - CLIP.seconds) < 0.3
    loud = np.abs(media.audio[: CLIP.seconds * 16_000].reshape(-1, 1600)).max(1) > 0.1  # per tenth of a second
    for sound in CLIP.sounds:
        assert loud[round(sound.start * 10) : round(sound.start * 10) + 3].any()
        loud[round(sound.start * 10) - 1 : round(sound.end * 10) + 3] = False
    assert not loud.any()


def test_bundled_questions_follow_from_the_timeline():
    listed = json.loads((FOLDER / "questions.json").read_text())
    assert listed["clip"] == "demo.mp4"
    answers = {q.text: q for q in questions(CLIP)}
    assert [q["question"] for q in listed["questions"]] == list(QUESTIONS)
    assert [q["kind"] for q in listed["questions"]] == ["video", "audio", "audio_visual"]
    for question in listed["questions"]:
        assert question["answer"] == answers[question["question"]].answer


def test_bundled_recordings_are_held_out():
    assert set(RECORDINGS["digit"]) <= set(digits.load("test").keys)
    words = [digits.NAMES[int(key[0])] for key in RECORDINGS["digit"]]
    assert words == [s.name for s in CLIP.sounds if s.kind == "digit"]
    names = [key.split()[0] for key in RECORDINGS["instrument"]]
    assert names == [s.name for s in CLIP.sounds if s.kind == "instrument"]
    assert set(names) <= set(instruments.NAMES)


@pytest.mark.complete
def test_the_clip_is_built_again(tmp_path):
    shutil.copytree(FOLDER / "photos", tmp_path / "photos")
    build(tmp_path)
    assert (tmp_path / "questions.json").read_text() == (FOLDER / "questions.json").read_text()
    ours, theirs = (read_clip(folder / "demo.mp4", Sampling(size=(112, 112))) for folder in (tmp_path, FOLDER))
    np.testing.assert_allclose(ours.audio, theirs.audio, atol=0.05)
    assert np.abs(ours.frames - theirs.frames.astype(np.float32)).mean() < 2
