"""Annotation files: JSON and JSON lines."""

import json

import pytest

from eval.tasks.entries import Entry
from models.errors import UserError

ROWS = [{"question": "What is\u2028heard?"}, {"question": "Who speaks?"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("quiz.json", json.dumps(ROWS)),
        ("quiz.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
        ("quiz.jsonl", "\ufeff\r\n" + "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n"),
    ],
)
def test_elements(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    file = Entry.read(tmp_path / name)
    assert file.value == ROWS
    assert [entry.text("question") for entry in file.elements()] == [row["question"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("quiz.json", '{"question": ', r"quiz\.json is not readable JSON \(.*\); copy it again"),
        ("quiz.jsonl", '{"question": "?"}\n\n{"question": ', r"quiz\.jsonl, line 3, is not readable JSON \(.*\); copy"),
        ("quiz.jsonl", "\n", r"quiz\.jsonl is no list with something in it"),
        ("quiz.jsonl", '{"question": "?"}\n{}', r"quiz\.jsonl, entry 2 has no 'question'"),
    ],
)
def test_mistakes(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        [entry.text("question") for entry in Entry.read(tmp_path / name).elements()]
