"""Questions about pictures (VQA v2): the most frequent answers as classes, scored as the official script does it."""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mergenet_jax import LossOutput
from models.bert.tokenizer import make_encoder
from models.layers.init import Params
from train.mergenet.tasks.bert import tokenizer_for
from train.mergenet.tasks.interface import Data, Examples, Part, Split
from train.mergenet.tasks.pictures import PictureTask, picture_reader

PEOPLE = 10
AGREEING = 3  # people whose agreement makes an answer fully right
NONE = -1
PUNCTUATION = re.compile(r"""[;/\[\]"{}()=+\\_\-><@`,?!]""")
THOUSANDS = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
NUMBERS: tuple[str, ...] = (
    "none",
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
DIGITS: dict[str, str] = dict(zip(NUMBERS, ("0", *map(str, range(11))), strict=True))


def normalised(answer: str) -> str:
    """Lower case, without punctuation and articles, with numbers to ten as digits.

    As in the official script (GT-Vision-Lab/VQA, vqaEval.py), but for its table of contractions without apostrophe
    ("dont"), and always: it leaves answers alone that all people gave alike.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    joined = THOUSANDS.search(text) is not None

    def mark(found: re.Match[str]) -> str:
        sign = found.group()
        return "" if joined or f"{sign} " in text or f" {sign}" in text else " "

    text = PERIOD.sub("", PUNCTUATION.sub(mark, text)).lower()
    return " ".join(DIGITS.get(word, word) for word in text.split() if word not in ("a", "an", "the"))


def accuracy(agreeing: int, people: int = PEOPLE) -> float:
    """Of an answer that `agreeing` of the people gave (Antol et al. 2015, arXiv 1505.00468, section 3.2).

    The mean of min(others who agree / 3, 1) over all sets of one person less.
    """
    without = agreeing * min((agreeing - 1) / AGREEING, 1) + (people - agreeing) * min(agreeing / AGREEING, 1)
    return without / people


def frequent(answers: Iterable[str], count: int) -> list[str]:
    """The most frequent answers, normalised; of equally frequent ones those that come first in the alphabet."""
    counted = collections.Counter(normalised(answer) for answer in answers)
    return sorted(counted, key=lambda answer: (-counted[answer], answer))[:count]


def soft_targets(given: Int[Array, "B P"], classes: int) -> Float[Array, "B C"]:
    """The accuracy of each class as an answer.

    Args:
        given: classes of the people's answers, NONE where an answer is no class.
        classes: how many.
    """
    agreeing = jnp.sum(jax.nn.one_hot(given, classes), 1)  # NONE is a row of zeros
    others = jnp.minimum((agreeing - 1) / AGREEING, 1.0)
    people = given.shape[1]
    return (agreeing * others + (people - agreeing) * jnp.minimum(agreeing / AGREEING, 1.0)) / people


class Answers(PictureTask):
    """The answers of VQA v2; a substitute for X-VLM's generated ones."""

    KIND = "answers"
    METRICS = {"accuracy": "VQA accuracy"}

    def loss(self, params: Params, stats: Params, batch: Any, key: Array) -> tuple[Float[Array, ""], LossOutput]:
        """Binary cross entropy with the answers' accuracies, summed over answers (Teney et al. 2017, 1708.02711)."""
        logits = self.model.classify(params, batch["pictures"], batch["tokens"], batch["mask"], key)
        targets = soft_targets(batch["answers"], self.spec.answers)
        each = jax.nn.softplus(logits) - targets * logits
        return jnp.mean(jnp.sum(each, -1)), LossOutput(stats)

    def answer(self, params: Params, batch: Any) -> dict[str, Array]:
        """The answer's class."""
        logits = self.model.classify(params, batch["pictures"], batch["tokens"], batch["mask"])
        return {"class": jnp.argmax(logits, -1)}

    def prepare(self, data: Data) -> Examples:
        """The questions; the classes are the most frequent answers of the training part."""
        asked = _questions(_texts(data, "train"))
        tokenizer = tokenizer_for(self.spec, self.model.text.vocab_size, (text for _, text, _ in asked))
        classes = frequent((answer for _, _, given in asked for answer in given), self.spec.answers)
        numbers = {answer: number for number, answer in enumerate(classes)}
        encode = make_encoder(tokenizer, self.spec.length)

        def split(name: str) -> Split:
            asked = _questions(_texts(data, name))
            pictures = picture_reader(data.open("vqa_v2", name), self.model.vision.image_size)
            of_picture = np.asarray([picture for picture, _, _ in asked])
            batch = encode([text for _, text, _ in asked])
            given = [[normalised(answer) for answer in answers] for _, _, answers in asked]
            known = np.asarray([[numbers.get(answer, NONE) for answer in answers] for answers in given], np.int32)

            def read(rows: np.ndarray) -> dict[str, Any]:
                texts = {"tokens": batch.tokens[rows], "mask": batch.mask[rows], "answers": known[rows]}
                return texts | {"pictures": pictures(of_picture[rows])}

            def score(found: dict[str, np.ndarray]) -> dict[str, float]:
                chosen = [classes[number] if number < len(classes) else "" for number in found["class"].tolist()]
                return {"accuracy": vqa_accuracy(chosen, given)}

            return Split(len(asked), read, score)

        return Examples(split, tokenizer)


def vqa_accuracy(answers: Sequence[str], given: Sequence[Sequence[str]]) -> float:
    """Mean accuracy of answers.

    Args:
        answers: one to each question, normalised.
        given: the people's answers to each question, normalised.
    """
    pairs = zip(answers, given, strict=True)
    return float(np.mean([accuracy(list(people).count(answer), len(people)) for answer, people in pairs]))


def _texts(data: Data, split: str) -> Part:
    return data.open("vqa_v2", split, undecoded=("image",))


def _questions(part: Part) -> list[tuple[int, str, list[str]]]:
    """Number of the picture, question and the people's answers of each question."""
    found = []
    for picture, example in enumerate(part):
        answers = [answer.decode() for answer in example["answers"]]
        for i, text in enumerate(example["questions"]["text"]):
            found.append((picture, text.decode(), answers[PEOPLE * i : PEOPLE * (i + 1)]))
    return found
