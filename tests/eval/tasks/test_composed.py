"""Tasks over av_compose: groups and turns, what is muted, and rows as tensorflow-datasets gives them."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from acckv_jax import Modality
from eval.benchmark import Options, measure, summary
from eval.composed import ComposedTask
from eval.tasks.registry import COMPOSED, TASKS
from models.errors import UserError
from tests.train.data.sources import sources
from train.data import av_compose
from train.data.av_compose import record


@pytest.fixture(scope="module")
def records():
    """Three short examples of each set."""
    with pytest.MonkeyPatch.context() as patch:
        images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3)).astype(np.uint8)
        patch.setattr(av_compose.cifar10, "load", lambda split: type("Pictures", (), {"images": images}))
        for name in ("DIALOGUES", "TRANSCRIPTS"):
            patch.setattr(av_compose, name, _short(getattr(av_compose, name)))
        patch.setattr(av_compose, "NEEDLES", {k: _short(v) for k, v in av_compose.NEEDLES.items()})
        yield {name: [record(name, "test", number, sources()) for number in range(3)] for name in av_compose.SETS}


def _short(config):
    return dataclasses.replace(config, seconds=(11, 12), items=(config.items[0], 10))


def _modalities(task: ComposedTask, id: str = "0") -> Counter:
    return Counter(int(kind) for kind in task.example(id).prefix.modality)


def test_groups_turns_and_labels(small_model, records):
    for name, kind in COMPOSED.items():
        task, own = kind(small_model, records[name]), records[name]
        asked = [[q for c in task.example(id).conversations for q in c] for id in ("0", "1", "2")]
        assert [[(q.text, q.references[0]) for q in questions] for questions in asked] == [
            [(q["text"], q["answer"]) for q in row["questions"]] for row in own
        ]
        groups = [{q.group for q in questions} for questions in asked]
        assert (
            groups
            == {
                "dialogues": [{"video", "audio", "audio_visual", "synchrony"}] * 3,
                "needles": [{"sound"}, {"picture"}, {"both"}],
                "transcripts": [{"digits", "pictures"}, {"instruments", "pictures"}, {"mixed", "pictures"}],
            }[name]
        )
        assert [asked[i][0].labels["layout"] for i in range(3)] == ["interleaved", "blocks", "interleaved"]
    assert [len(c) for c in TASKS["dialogues"](small_model, records["dialogues"]).example("0").conversations] == [4] * 4


def test_a_muted_clip_lacks_the_sense_alone(small_model, records):
    row = records["dialogues"][0]
    whole = _modalities(TASKS["dialogues"](small_model, [row]))
    assert whole[Modality.VIDEO] == 16 * row["seconds"] and whole[Modality.AUDIO] == 10 * row["seconds"]
    deaf = _modalities(TASKS["dialogues_without_sound"](small_model, [row]))
    blind = _modalities(TASKS["dialogues_without_pictures"](small_model, [row]))
    assert deaf == whole - Counter({Modality.AUDIO: whole[Modality.AUDIO]})
    assert blind == whole - Counter({Modality.VIDEO: whole[Modality.VIDEO]})
    assert {name for name in TASKS if name.split("_without_")[0] in COMPOSED} == {
        f"{name}{end}" for name in COMPOSED for end in ("", "_without_sound", "_without_pictures")
    }


def test_rows_of_tensorflow_datasets_are_read_alike(small_model, records):
    row = records["needles"][1]
    columns = {key: np.array([q[key] for q in row["questions"]], object) for key in row["questions"][0]}
    columns = {
        key: np.array([v.encode() if isinstance(v, str) else v for v in values], object)
        for key, values in columns.items()
    }
    prepared = {**row, "questions": columns, "group": row["group"].encode(), "depth": np.float32(row["depth"])}
    ours, theirs = (TASKS["needles"](small_model, [one]).example("0") for one in (row, prepared))
    assert ours.conversations == theirs.conversations


@pytest.mark.complete
def test_transcripts_are_scored_by_word_errors(small_model, records, tmp_path):
    task = TASKS["transcripts"](small_model, records["transcripts"])
    options = Options("transcripts", policies=("snapkv",), budgets=("0.5",), examples=1)
    result = summary(measure(options, tmp_path / "answers.jsonl", lambda *_: task))
    assert result["metric"] == "capped_word_error_rate"
    assert {row["policy"]: row["groups"]["pictures"]["asked"] for row in result["rows"]} == {"full": 1, "snapkv": 1}
    assert all(row["all"]["score"] > 0.5 for row in result["rows"])  # the small model is random


def test_without_data_of_the_set_it_says_so(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr("models.load", lambda name: small_model)
    with pytest.raises(UserError, match="av_compose/needles"):
        TASKS["needles"].load("smolav", tmp_path)
