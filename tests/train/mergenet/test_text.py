"""Reviews and questions as tokens; spans there and back; scores equal the official script's."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from models.bert.tokenizer import SPECIAL, load_bert_tokenizer, make_encoder
from models.errors import UserError
from tests.train.mergenet.served import CONTEXT, QUESTIONS
from train.mergenet.squad import answer_texts, best_span, evaluate, exact_match, f1, normalised
from train.mergenet.text import QUESTION_TOKENS, context_tokens, encode_questions, encode_reviews

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789?.,"
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "ada", "wrote", "notes", "cafe", "of", "the"]
LENGTH, STRIDE = 48, 12
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "squad_metrics.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return load_bert_tokenizer(folder, len(VOCABULARY))


def _examples() -> list[dict[str, Any]]:
    """As tensorflow-datasets gives them."""
    return [
        {
            "id": key.encode(),
            "question": question["question"].encode(),
            "context": CONTEXT.encode(),
            "answers": {
                "text": [answer["text"].encode() for answer in question["answers"]],
                "answer_start": [np.int32(answer["answer_start"]) for answer in question["answers"]],
            },
        }
        for key, question in QUESTIONS.items()
    ]


def test_reviews(tokenizer: Tokenizer) -> None:
    examples = [{"text": b"Ada wrote notes.", "label": 1}, {"text": b"the " * 99, "label": np.int64(0)}]
    arrays = encode_reviews(examples, make_encoder(tokenizer, 8))
    tokens = [[tokenizer.id_to_token(token) for token in row] for row in arrays["tokens"].tolist()]
    assert tokens == [
        ["[CLS]", "ada", "wrote", "notes", ".", "[SEP]", "[PAD]", "[PAD]"],
        ["[CLS]", *["the"] * 6, "[SEP]"],
    ]
    assert arrays["mask"].sum(axis=1).tolist() == [6, 8] and arrays["labels"].tolist() == [1, 0]
    assert not arrays["token_types"].any() and arrays["labels"].dtype == np.int32


def test_windows_cover_the_context_and_mark_the_answer(tokenizer: Tokenizer) -> None:
    questions = encode_questions(_examples(), tokenizer, LENGTH, STRIDE)
    arrays, rows = questions.arrays, questions.batch.row
    assert questions.ids == tuple(QUESTIONS) and arrays["tokens"].shape == (len(rows), LENGTH) and len(rows) > 30
    whole = tokenizer.encode(CONTEXT, add_special_tokens=False).offsets
    of_context = context_tokens(questions.batch)
    held_by = {key: 0 for key in QUESTIONS}
    for i, row in enumerate(rows.tolist()):
        key = questions.ids[row]
        spans = [tuple(span) for span in questions.batch.offsets[i][of_context[i]].tolist()]
        first = whole.index(spans[0])
        assert spans == whole[first : first + len(spans)]
        answers = QUESTIONS[key]["answers"]
        held = (
            bool(answers)
            and spans[0][0] <= answers[0]["answer_start"]
            and (answers[0]["answer_start"] + len(answers[0]["text"]) <= spans[-1][1])
        )
        held_by[key] += held
        if held:
            start, end = (
                questions.batch.offsets[i, arrays["start"][i], 0],
                questions.batch.offsets[i, arrays["end"][i], 1],
            )
            assert CONTEXT[start:end] == answers[0]["text"] and start == answers[0]["answer_start"]
        else:
            assert arrays["start"][i] == arrays["end"][i] == 0
    assert all((count > 0) == bool(QUESTIONS[key]["answers"]) for key, count in held_by.items())
    seen = {tuple(span) for span in questions.batch.offsets[rows == 1][of_context[rows == 1]].tolist()}
    assert seen == set(whole)


def test_long_questions_are_cut(tokenizer: Tokenizer) -> None:
    example = _examples()[1] | {"question": b"ada " * 200}
    questions = encode_questions([example], tokenizer, 100, 8)
    assert (questions.arrays["tokens"][0] == tokenizer.token_to_id("ada")).sum() >= QUESTION_TOKENS
    assert (questions.arrays["token_types"][0] == 0)[: QUESTION_TOKENS + 2].all()
    assert questions.arrays["token_types"][0, QUESTION_TOKENS + 2] == 1
    with pytest.raises(UserError, match="leaves 0 of 48 for the second text"):
        encode_questions([example], tokenizer, LENGTH, STRIDE)


def test_true_targets_give_the_true_answers(tokenizer: Tokenizer) -> None:
    """Logits that are high at the targets alone; windows without the answer point at [CLS]."""
    questions = encode_questions(_examples(), tokenizer, LENGTH, STRIDE)
    arrays = questions.arrays
    start, end = (10.0 * np.eye(LENGTH)[arrays[name]] for name in ("start", "end"))
    accepted = dict(zip(questions.ids, questions.answers, strict=True))
    assert {key for key, texts in accepted.items() if not texts} == {"q0", "q3", "q6"}
    answers = answer_texts(questions, start, end)
    assert evaluate(answers, accepted) == {
        f"{group}{name}": 100.0 for group in ("", "has_answer_", "no_answer_") for name in ("exact", "f1")
    }
    assert answers["q1"] == "1843" and answers["q2"] == "café of Zürich" and answers["q0"] == ""
    assert all(answer_texts(questions, start, end, null_threshold=None).values())
    assert not any(answer_texts(questions, start, end, null_threshold=-100.0).values())


def test_best_span_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for longest in (1, 3, 30):
        start, end = rng.normal(size=(2, 12))
        start[rng.integers(12, size=4)] = -np.inf
        expected = max(
            (start[i] + end[j], i, j) for i, j in itertools.product(range(12), repeat=2) if i <= j < i + longest
        )
        assert best_span(start, end, longest) == expected
    assert best_span(np.full(4, -np.inf), np.zeros(4), 3)[0] == -np.inf


def test_scores_equal_the_official_script() -> None:
    for question in GOLDEN["questions"]:
        assert exact_match(question["answer"], question["accepted"]) == question["exact"], question
        assert f1(question["answer"], question["accepted"]) == pytest.approx(question["f1"]), question
    found = evaluate(
        {question["id"]: question["answer"] for question in GOLDEN["questions"]},
        {question["id"]: question["accepted"] for question in GOLDEN["questions"]},
    )
    assert found == pytest.approx(GOLDEN["overall"])
    assert 20 < found["exact"] < found["f1"] < 80


def test_normalisation_by_hand() -> None:
    assert normalised("  The cat's, a DOG;  an Owl ") == "cats dog owl"
    assert exact_match("the", []) == exact_match("", ["The."]) == 1 and exact_match("x", []) == 0
    assert f1("big cat", ["a cat", "cat cat"]) == pytest.approx(2 / 3)


def test_every_question_must_be_answered() -> None:
    with pytest.raises(UserError, match=r"1 questions are not answered \('b' is one\)"):
        evaluate({"a": ""}, {"a": [], "b": []})
    with pytest.raises(UserError, match="no questions to score"):
        evaluate({}, {})
