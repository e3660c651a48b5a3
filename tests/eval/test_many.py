"""Questions about many clips: batches give what single runs give, a killed run goes on, a broken clip is a line."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

import models
from eval.answer import Options, main, run
from eval.many import read_questions
from models.errors import UserError
from models.media.clip_writer import write_clip
from models.policies import build_policy

BUDGET = 40


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips of one bucket, and one that is no clip."""
    folder = tmp_path_factory.mktemp("clips")
    for number, seconds in enumerate((3, 4)):
        frames = np.random.default_rng(number).integers(0, 255, (seconds, 64, 80, 3)).astype(np.uint8)
        sound = np.sin(np.arange(seconds * 16000) / (8 + number)).astype(np.float32) / 4
        write_clip(folder / f"{number}.mp4", frames, 1, sound)
    (folder / "2.mp4").write_text("no clip")
    return folder


@pytest.fixture
def questions(clips, tmp_path):
    rows = [
        {"id": "first", "clip": str(clips / "0.mp4"), "question": "What is shown?"},
        {"id": "broken", "clip": str(clips / "2.mp4"), "question": "What is shown?"},
        {"id": "second", "clip": str(clips / "1.mp4"), "question": "What is shown?"},
        {"id": "again", "clip": str(clips / "0.mp4"), "question": "What is heard?"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(model, questions, out, **more):
    loaded = []

    def load(name, progress):
        loaded.append(name)
        return model

    options = Options(batch=questions, out=out, policy="snapkv", budget=f"{BUDGET}", max_new_tokens=3, rows=2, **more)
    run(options, Console(file=io.StringIO()), Console(file=io.StringIO()), load=load)
    return [json.loads(line) for line in out.read_text().splitlines()], loaded


def test_a_policy_that_reads_clips_twice_is_refused(small_model, questions, tmp_path, capsys):
    arguments = ["--batch", f"{questions}", "--out", f"{tmp_path / 'answers.jsonl'}", "--policy", "protected(kvzip)"]
    assert main([*arguments, "--budget", "60"]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "Policy protected(kvzip) reads every prompt twice, which this program does not do" in shown


def test_batches_answer_as_single_runs_do_and_a_killed_run_goes_on(small_model, questions, clips, tmp_path):
    out = tmp_path / "answers.jsonl"
    rows, _ = asked(small_model, questions, out)
    found = {row["id"]: row for row in rows}
    assert found.keys() == {"first", "second", "again", "broken"} and len(rows) == 4
    assert found["broken"]["error"].startswith(str(clips / "2.mp4"))
    for row in rows:
        if "answer" in row:
            policy = build_policy("snapkv", BUDGET)
            alone = models.answer(small_model, row["clip"], row["question"], policy=policy, max_new_tokens=3)
            assert row["answer"] == alone.text and row["tokens"] == alone.prompt_tokens
            assert row["cache_bytes"] == alone.cache_bytes.prompt
            assert sum(row["kept"].values()) == pytest.approx(BUDGET, abs=0.02)  # three rounded numbers
            mean = {name: np.mean([layer[name] for layer in alone.kept]) for name in row["kept"]}
            assert row["kept"] == pytest.approx(mean, abs=0.01)

    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed in the midst of the third
    rows, _ = asked(small_model, questions, out)
    assert {row["id"]: row for row in rows} == found and len(rows) == 4
    assert asked(small_model, questions, out) == (rows, [])  # nothing is left, so nothing is loaded


def test_errors_are_told_and_belong_to_their_settings(small_model, questions, clips, tmp_path):
    """Errors of a budget that is too small do not stand for other budgets."""
    out, said, quiet = tmp_path / "answers.jsonl", io.StringIO(), Console(file=io.StringIO())
    options = Options(batch=questions, out=out, policy="random", budget="1", max_new_tokens=3)
    with pytest.raises(UserError, match="None of the questions could be answered, such as .*budget"):
        run(options, quiet, quiet, load=lambda name, progress: small_model)
    assert all(json.loads(line)["budget"] == 1 for line in out.read_text().splitlines())
    larger = dataclasses.replace(options, budget=f"{BUDGET}")
    with pytest.raises(UserError, match=f"holds answers of budget 1, not {BUDGET}; name another file"):
        run(larger, quiet, quiet, load=lambda name, progress: small_model)
    out.unlink()
    run(larger, quiet, Console(file=said, width=1000), load=lambda name, progress: small_model)
    assert f"1 of 4 questions could not be answered, such as broken: {clips / '2.mp4'}" in said.getvalue()
    assert "To ask again, delete their lines from" in said.getvalue()


def test_answers_of_another_policy_are_not_continued(small_model, questions, tmp_path):
    out = tmp_path / "answers.jsonl"
    asked(small_model, questions, out)
    before = out.read_bytes()
    options = Options(batch=questions, out=out, policy="acckv", budget=f"{BUDGET}", max_new_tokens=3)
    quiet = Console(file=io.StringIO())
    with pytest.raises(UserError, match="answers.jsonl holds answers of policy snapkv, not acckv; name another file."):
        run(options, quiet, quiet, load=lambda name, progress: small_model)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty; write lines like"),
        ('{"id": "1", "clip": "a.mp4"', "Line 1 of .* is not JSON"),
        (
            '{"id": "1", "clip": "a.mp4"}',
            'Line 1 of .* must be an object with the texts "id", "clip" and "question", none',
        ),
        ('{"id": 1, "clip": "a.mp4", "question": "What?"}', "must be an object with the texts"),
        ('{"id": "1", "clip": "a.mp4", "question": ""}', '"clip" and "question", none of them empty.'),
        ('{"id": "1", "clip": "a.mp4", "question": "\\ud800"}', "Line 1 of .* has characters that are half of a pair"),
        ('{"id": "1", "clip": "a", "question": "b"}\n' * 2, "has the id 1 twice"),
    ],
)
def test_wrong_questions(tmp_path, content, sentence):
    path = tmp_path / "questions.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_questions(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch", "q.jsonl"], "--batch, the file of questions, and --out, the file of answers, belong together."),
        (["--out", "a.jsonl"], "--batch, the file of questions, and --out, the file of answers, belong together."),
        (["--batch", "q.jsonl", "--out", "a.jsonl"], "q.jsonl cannot be read: No such file or directory."),
        (["clip.mp4", "--batch", "q", "--out", "a"], "from a file, greedily; leave out CLIP."),
        (["--batch", "q", "--out", "a", "--temperature", "1"], "from a file, greedily; leave out --temperature."),
        (["--batch", "q", "--out", "none/a"], "There is no folder none to write a into; make it first."),
        (["--batch", "q", "--out", "a", "--rows", "0"], "--max-new-tokens and --rows must be at least 1."),
    ],
)
def test_wrong_options(arguments, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())
