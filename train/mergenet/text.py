"""Reviews and questions as rows of tokens."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from models.bert.tokenizer import Encode, TextBatch, make_encoder

QUESTION_TOKENS = 64  # longer questions are cut, as in BERT's code (max_query_length)
Arrays = dict[str, np.ndarray]


def encode_reviews(examples: Iterable[dict[str, Any]], encode: Encode) -> Arrays:
    """Reviews of imdb_reviews, cut at their ends.

    Args:
        examples: with `text` (bytes) and `label`.
        encode: of `make_encoder` without a stride.

    Returns:
        Arrays tokens, mask and token_types [n, T], and labels [n].
    """
    texts, labels = zip(*((example["text"].decode(), int(example["label"])) for example in examples), strict=True)
    return model_inputs(encode(texts)) | {"labels": np.asarray(labels, np.int32)}


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions about texts; a long text gives several rows, windows that overlap.

    Attributes:
        batch: question and window of each row; `batch.row` is the question's number.
        start: of the answer's first token; 0, which is [CLS], where the window does not hold the whole answer.
        end: of its last token; 0 in the same case.
        ids: of the questions.
        contexts: of the questions.
        answers: accepted ones of each question; none where it has no answer.
    """

    batch: TextBatch
    start: Int[np.ndarray, " n"]
    end: Int[np.ndarray, " n"]
    ids: tuple[str, ...]
    contexts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]

    @property
    def arrays(self) -> Arrays:
        """Inputs and targets of the rows: tokens, mask, token_types [n, T]; start, end [n]."""
        return model_inputs(self.batch) | {"start": self.start, "end": self.end}


def encode_questions(
    examples: Iterable[dict[str, Any]], tokenizer: Tokenizer, length: int = 384, stride: int = 128
) -> Questions:
    """Questions of SQuAD (either version) as rows [CLS] question [SEP] window of the context [SEP].

    The defaults are BERT's for SQuAD. A row's target is the first accepted answer.

    Args:
        examples: with `id`, `question`, `context` (bytes) and `answers` {`text`, `answer_start`}.
        tokenizer: of `models.bert.tokenizer.load_bert_tokenizer`.
        length: tokens of a row, T.
        stride: tokens that successive windows of a context share.

    Raises:
        UserError: if the length leaves too little room beside a question.
    """
    examples = list(examples)
    contexts = [example["context"].decode() for example in examples]
    questions = [_cut(example["question"].decode().strip(), tokenizer) for example in examples]
    batch = make_encoder(tokenizer, length, stride=stride)(questions, contexts)
    of_context = context_tokens(batch)
    spans = [_characters(example["answers"]) for example in examples]
    targets = [
        _tokens(span, batch.offsets[i], of_context[i]) if (span := spans[row]) else (0, 0)
        for i, row in enumerate(batch.row.tolist())
    ]
    start, end = np.asarray(targets, np.int32).reshape(-1, 2).T
    return Questions(
        batch,
        start,
        end,
        tuple(example["id"].decode() for example in examples),
        tuple(contexts),
        tuple(tuple(text.decode() for text in example["answers"]["text"]) for example in examples),
    )


def model_inputs(batch: TextBatch) -> Arrays:
    """Inputs of models: tokens, mask and token_types."""
    return {"tokens": batch.tokens, "mask": batch.mask, "token_types": batch.token_types}


def context_tokens(batch: TextBatch) -> Bool[np.ndarray, "B T"]:
    """Where the tokens of the second texts are, without [SEP] and padding, which span no characters."""
    return (batch.token_types == 1) & (batch.offsets[..., 1] > batch.offsets[..., 0])


def _cut(question: str, tokenizer: Tokenizer) -> str:
    offsets = tokenizer.encode(question, add_special_tokens=False).offsets
    return question if len(offsets) <= QUESTION_TOKENS else question[: offsets[QUESTION_TOKENS - 1][1]]


def _characters(answers: dict[str, Any]) -> tuple[int, int] | None:
    """First and after-last character of the first answer, or None."""
    if not len(answers["text"]):
        return None
    start = int(answers["answer_start"][0])
    return start, start + len(answers["text"][0].decode())


def _tokens(
    span: tuple[int, int], offsets: Int[np.ndarray, "T 2"], of_context: Bool[np.ndarray, " T"]
) -> tuple[int, int]:
    """Tokens that hold the characters, or (0, 0) where the window does not reach over all of them."""
    first, after = span
    window = np.flatnonzero(of_context)
    if not len(window) or offsets[window[0], 0] > first or offsets[window[-1], 1] < after:
        return 0, 0
    touched = window[(offsets[window, 1] > first) & (offsets[window, 0] < after)]
    return (int(touched[0]), int(touched[-1])) if len(touched) else (0, 0)
