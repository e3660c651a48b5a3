"""Accuracy of SmolAV with the full attention on held-out clips of 10 to 30 seconds.

    python -m eval.accuracy                        100 clips, some minutes on two cores
    python -m eval.accuracy --clips 1000 --out models/smolav/accuracy.json

An answer counts only if greedy decoding gives exactly the word and then stops; this is read off one pass over the
packed questions, each predicted token compared with the right one given the right ones before it, which is the same.
"""

import collections
import copy
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Int
from rich.console import Console
from rich.table import Table

from eval.held_out import GROUPS, MOST, HeldOutClips, candidates, group_of
from models import command
from models.errors import UserError
from models.layers.init import Params, abstract_params
from models.smolav.config import LAYOUTS, Layout, SmolAVConfig
from models.smolav.encoders import Encoders
from models.smolav.modeling import MediaEmbedder
from models.smolav.params import FOLDER, load_smolav
from models.smolav.preprocess import Chat, EncodedMedia
from models.text.tokenizers import load_smollm2_tokenizer
from train.data.clips import Clip
from train.data.questions import ANSWERS, Question
from train.smolav import language_model
from train.smolav.align import answer_words
from train.smolav.batches import Batch, Packed, collate, question_rows
from train.smolav.losses import answer_logits, exact_answers

LENGTHS = (512, 1024)  # two compiled shapes: clips up to 14 seconds, and up to 30
SLOTS = 28  # most questions per row
MEDIA_SHARE = 0.75  # of a row that the media may take; the rest is for questions


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One question, answered.

    Attributes:
        group: one of GROUPS.
        layout: order of the media.
        answer: kind of thing that is asked for.
        expected: the right word.
        found: the word that the first generated token begins, or "other".
        exact: whether greedy decoding gives exactly the word.
        candidates: how many things of that kind the clip holds.
    """

    group: str
    layout: str
    answer: str
    expected: str
    found: str
    exact: bool
    candidates: int


class Evaluator:
    """Answers packed questions with a loaded model."""

    def __init__(self, config: SmolAVConfig, params: Params, dtype: jnp.dtype = jnp.float32) -> None:
        """Takes SmolAV's parameters; `dtype` is of the language model's matrices."""
        tokenizer = load_smollm2_tokenizer()
        self.config, self.media = config, jax.device_put(params["media"])
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.chat = Chat.smollm2(self.encode)
        self.frozen = language_model.freeze(params["decoder"], dtype)
        graph, _ = abstract_params(lambda: MediaEmbedder(config, rngs=nnx.Rngs(0)))

        def choose(media: Params, frozen: Params, batch: Batch) -> Int[jax.Array, "B P"]:
            return jnp.argmax(answer_logits(config, graph, {"media": media, "lora": {}}, frozen, batch), axis=-1)

        self._choose = jax.jit(choose)

    def with_media(self, media: Params) -> "Evaluator":
        """The same language model with other projectors of the same sizes; nothing is compiled again."""
        other = copy.copy(self)
        other.media = jax.device_put(media)
        return other

    def pack(self, clip: Clip, media: EncodedMedia, layout: Layout) -> list[tuple[Packed, int]]:
        """All canonical questions of a clip in rows, each with its padded length."""
        tokens = len(media.video) * self.config.frame_tokens + len(media.audio)
        length = next(n for n in LENGTHS if tokens <= MEDIA_SHARE * n or n == LENGTHS[-1])
        rows = question_rows(clip, media, self.encode, self.chat, layout, self.config, length)
        return [(row, length) for row in rows]

    def answer(self, row: Packed, media: EncodedMedia, length: int) -> tuple[Int[np.ndarray, "Q A"], np.ndarray]:
        """Chosen tokens [questions, answer tokens], and whether each answer is exactly right."""
        batch = collate([(row, media)], length, SLOTS)
        chosen = np.asarray(self._choose(self.media, self.frozen, batch)).reshape(batch["target"].shape)
        right = np.asarray(exact_answers(jnp.asarray(chosen), jnp.asarray(batch["target"])))
        return chosen[0, : len(row.questions)], right[0, : len(row.questions)]


def outcomes(evaluator: Evaluator, clips: HeldOutClips, numbers: Iterable[int]) -> Iterator[Outcome]:
    """Every canonical question of the test clips of these numbers, the layouts in turn."""
    words = {evaluator.encode(word)[0]: word for word in answer_words(clips.pool.sources)[:-1]}
    for index, clip, media in clips.numbered(numbers):
        layout = LAYOUTS[index % len(LAYOUTS)]
        for row, length in evaluator.pack(clip, media, layout):
            chosen, right = evaluator.answer(row, media, length)
            for question, tokens, exact in zip(row.questions, chosen, right, strict=True):
                yield _outcome(clip, question, layout, words.get(int(tokens[0]), "other"), bool(exact))


def _outcome(clip: Clip, question: Question, layout: str, found: str, exact: bool) -> Outcome:
    answer, many = ANSWERS[question.subkind], candidates(clip, question)
    return Outcome(group_of(question), layout, answer, question.answer, found, exact, many)


def summary(found: Sequence[Outcome], clips: int) -> dict:
    """Accuracies, chance levels and confusions, ready for JSON."""

    def of(chosen: list[Outcome]) -> dict[str, float | int]:
        accuracy = float(np.mean([o.exact for o in chosen])) if chosen else float("nan")
        guess = float(np.mean([1 / o.candidates for o in chosen])) if chosen else float("nan")
        error = (accuracy * (1 - accuracy) / max(len(chosen), 1)) ** 0.5
        return {
            "questions": len(chosen),
            "accuracy": round(accuracy, 4),
            "standard_error": round(error, 4),
            "chance_among_ten_words": 0.1,
            "chance_among_the_clips_own": round(guess, 4),
        }

    confusions = {}
    for kind in sorted(set(ANSWERS.values())):
        pairs = collections.Counter((o.expected, o.found) for o in found if o.answer == kind)
        names = sorted({expected for expected, _ in pairs})
        confusions[kind] = {a: {b: n for (x, b), n in sorted(pairs.items()) if x == a} for a in names}
    return {
        "clips": clips,
        "groups": {group: of([o for o in found if o.group == group]) for group in GROUPS},
        "layouts": {
            layout: {
                group: of([o for o in found if (o.group, o.layout) == (group, layout)])["accuracy"] for group in GROUPS
            }
            for layout in LAYOUTS
        },
        "confusions": confusions,
    }


def print_summary(console: Console, result: dict) -> None:
    """Prints the accuracies as a table, then the commonest confusions."""
    table = Table("questions about", "asked", "right", "chance", *LAYOUTS, title=f"{result['clips']} held-out clips")
    for group, row in result["groups"].items():
        right = f"{row['accuracy']:.3f} ± {row['standard_error']:.3f}"
        chance = f"{row['chance_among_ten_words']:.2f} / {row['chance_among_the_clips_own']:.2f}"
        layouts = [f"{result['layouts'][layout][group]:.3f}" for layout in LAYOUTS]
        table.add_row(group, str(row["questions"]), right, chance, *layouts)
    console.print(table)
    console.print("chance: among all ten words of the kind / among the things of that kind in the clip")
    for kind, rows in result["confusions"].items():
        wrong = collections.Counter({(a, b): n for a, row in rows.items() for b, n in row.items() if a != b})
        console.print(f"{kind}: " + ", ".join(f"{a} as {b} {n}" for (a, b), n in wrong.most_common(6)), markup=False)


@dataclasses.dataclass(frozen=True)
class Options:
    """Accuracy on held-out clips."""

    clips: int = 100
    """How many test clips, at most 1000."""
    model: Path = FOLDER
    """Folder of an exported SmolAV."""
    out: Path | None = None
    """Also write the result as JSON."""


def run(options: Options) -> None:
    """Measures, prints, and writes the result if asked to.

    Raises:
        UserError: on a bad number of clips or model.
    """
    if not 1 <= options.clips <= MOST:
        raise UserError(f"--clips must be 1 to {MOST}, not {options.clips}.")
    command.check_output(options.out)
    config, _, params = load_smolav(options.model)
    clips = HeldOutClips.load(Encoders.load(config))
    result = summary(list(outcomes(Evaluator(config, params), clips, range(options.clips))), options.clips)
    print_summary(Console(), result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.accuracy", description=__doc__)
    command.keep_compiled()
    return command.run(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
