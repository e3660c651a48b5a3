"""av_compose: what its examples hold, from facts of the clip; its files; its builder."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from models.media.clip import read_clip
from tests.train.data.sources import sources
from train.data import av_compose
from train.data.av_compose import DEPTHS, PLACES, SETS, TURNS, compose, file_of, record
from train.data.questions import CATEGORIES

NUMBERS = range(30)


@pytest.fixture(scope="module")
def examples():
    return {name: [compose(name, "test", number, sources()) for number in NUMBERS] for name in SETS}


def test_examples_follow_from_set_split_and_number(examples):
    assert compose("needles", "test", 7, sources()) == examples["needles"][7]
    assert compose("needles", "validation", 7, sources()) != examples["needles"][7]
    clips = {example.clip for name in SETS for example in examples[name]}
    assert len(clips) == len(SETS) * len(NUMBERS)
    assert all(10 <= clip.seconds <= 120 for clip in clips)
    assert min(clip.seconds for clip in clips) < 20 and max(clip.seconds for clip in clips) > 110


def test_dialogues_have_every_kind_at_every_turn(examples):
    answers = Counter()
    for example in examples["dialogues"]:
        kinds = [tuple(question.kind for question in conversation) for conversation in example.conversations]
        assert sorted(kinds) == sorted(TURNS[i:] + TURNS[:i] for i in range(4))
        for conversation in example.conversations:
            for turn, question in enumerate(conversation):
                said = " ".join(f"{q.text} {q.answer}" for q in conversation[:turn]).replace("?", "").split()
                assert question.answer in ("yes", "no") or question.answer not in said
                answers[question.answer] += question.kind == "synchrony"
    assert set(+answers) == {"yes", "no"} and 0.35 < answers["yes"] / answers.total() < 0.65


def test_transcripts_are_what_the_clip_holds_in_order(examples):
    lengths = set()
    for number, example in enumerate(examples["transcripts"]):
        clip, asked = example.clip, {q.subkind: q.answer.split() for c in example.conversations for q in c}
        assert asked == {"heard": [s.name for s in clip.sounds], "shown": [p.name for p in clip.pictures]}
        lengths |= {len(words) for words in asked.values()}
        kinds = {sound.kind for sound in clip.sounds}
        assert (
            example.group == ("digits", "instruments", "mixed")[number % 3]
            and kinds == ({"digit"}, {"instrument"}, {"digit", "instrument"})[number % 3]
        )
    assert min(lengths) >= 10 and max(lengths) <= 60 and max(lengths) - min(lengths) > 30


def test_needles_are_single_and_as_deep_as_said(examples):
    for number, example in enumerate(examples["needles"]):
        clip, [[question]] = example.clip, example.conversations
        assert (example.group, example.depth) == (PLACES[number % 3], DEPTHS[number // 3 % 5])
        span = clip.pictures[round(example.depth * (len(clip.pictures) - 1))]
        [within] = [s for s in clip.sounds if span.start <= s.start and s.end <= span.end] or [None]
        vehicles = [p for p in clip.pictures if p.name in CATEGORIES["vehicle"]]
        if example.group == "sound":
            assert [s for s in clip.sounds if s.kind == "digit"] == [within]
            assert (question.text, question.answer) == ("Which number is spoken?", within.name)
        else:
            assert vehicles == [span]
            names = {"picture": ("Which vehicle is shown?", span.name)}
            names["both"] = (f"Which number is spoken while the {span.name} is shown?", within and within.name)
            assert (question.text, question.answer) == names[example.group]


@pytest.fixture
def pixels(monkeypatch):
    """Random pictures for the ids of the made-up sources."""
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3)).astype(np.uint8)
    loaded = type("Pictures", (), {"images": images})
    monkeypatch.setattr(av_compose.cifar10, "load", lambda split: loaded)
    return images


def test_files_lose_nothing(examples, pixels, tmp_path):
    clip = min((example.clip for example in examples["needles"]), key=lambda clip: clip.seconds)
    (tmp_path / "clip.mkv").write_bytes(file_of(clip, "test", sources()))
    media = read_clip(tmp_path / "clip.mkv")
    np.testing.assert_array_equal(media.frames, pixels[clip.picture_ids])
    np.testing.assert_allclose(media.audio, clip.audio(sources()), atol=1 / 32768)
    assert media.notes == ()


def test_what_is_prepared_is_what_is_composed(pixels, monkeypatch, tmp_path, capsys):
    from train.data import av_compose_tfds
    from train.mergenet.tfds_source import open_tfds

    monkeypatch.setattr(av_compose, "sources_of", lambda split: sources())
    monkeypatch.setattr(av_compose_tfds, "COUNTS", {"test": 3})
    monkeypatch.setattr(av_compose, "COUNTS", {"test": 3})
    monkeypatch.setattr(av_compose, "NEEDLES", {k: _short(v) for k, v in av_compose.NEEDLES.items()})
    assert av_compose_tfds.main(["--data-dir", str(tmp_path), "--sets", "needles"]) == 0
    assert "av_compose/needles is in" in capsys.readouterr().out
    found = open_tfds("av_compose/needles", "test", tmp_path)
    assert len(found) == 3
    by_id = {row["id"].decode(): row for row in found}
    for number in range(3):
        expected = record("needles", "test", number, sources())
        row = by_id[expected["id"]]
        assert row["clip"] == expected["clip"]
        assert [row["seconds"], row["group"].decode()] == [expected["seconds"], expected["group"]]
        assert [text.decode() for text in row["questions"]["text"]] == [q["text"] for q in expected["questions"]]
        np.testing.assert_allclose(row["heard"]["start"], [s["start"] for s in expected["heard"]], rtol=1e-6)
    features = json.loads(next(tmp_path.glob("av_compose/needles/1.0.0/features.json")).read_text())
    assert "questions" in features["featuresDict"]["features"]
    shutil.rmtree(tmp_path / "av_compose")


def _short(config):
    import dataclasses

    return dataclasses.replace(config, seconds=(10, 12))
