"""docs/add_a_task.md: its task runs, and so does its test."""

import json
import shutil

import pytest

from eval.answer import DEMO
from eval.benchmark import main
from eval.tasks.registry import TASKS
from tests.docs.pages import run


@pytest.fixture
def page(monkeypatch):
    monkeypatch.delitem(TASKS, "folder", raising=False)
    yield run("docs/add_a_task.md", {})
    del TASKS["folder"]


@pytest.fixture
def folder(tmp_path):
    """The bundled clip with its questions, and a file that is no clip."""
    shutil.copy(DEMO / "demo.mp4", tmp_path)
    (tmp_path / "broken.mp4").write_text("no clip")
    questions = json.loads((DEMO / "questions.json").read_text())["questions"]
    video, audio, both = ({"group": q["kind"], "question": q["question"], "answer": q["answer"]} for q in questions)
    listed = {"broken.mp4": [[video, audio]], "demo.mp4": [[video, audio], [both, video]]}
    (tmp_path / "clips.json").write_text(json.dumps(listed))
    return tmp_path


@pytest.mark.complete
def test_its_test_passes(page, small_model, folder):
    page["test_folder"](small_model, folder)


def test_without_its_data_the_task_says_what_it_needs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--task", "folder"]) == 2
    assert "This task reads a folder with clips and a clips.json; name it with --data." in capsys.readouterr().err


def test_a_mistake_in_its_data_is_one_sentence(folder, page, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for content, sentence in (
        ('{"demo.mp4": [[{"group": "video", "question": "?"}]]}', "'demo.mp4', entry 1, entry 1 has no 'answer'"),
        ('{"demo.mp4": [[', "clips.json is not readable JSON"),
    ):
        (folder / "clips.json").write_text(content)
        assert main(["--task", "folder", "--data", "."]) == 2
        shown = capsys.readouterr().err
        assert sentence in shown and "Traceback" not in shown


@pytest.mark.complete
def test_its_command_asks_the_real_model(page, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["--task", "folder", "--data", ".", "--policies", "snapkv", "--budgets", "0.5"]) == 0
    shown = capsys.readouterr()
    assert "1 example of folder: first word" in shown.out
    rows = [json.loads(line) for line in (folder / "folder.jsonl").read_text().splitlines()[1:]]
    assert [row["score"] for row in rows if row.get("policy") == "full" and row["turn"] == 1] == [1, 1]
