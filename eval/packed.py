"""SmolAV's answers to all questions of a clip, read off one pass over the packed questions, without a cache.

The right answers stand in the rows, so each predicted token is compared with the right one given the right ones before
it. An answer is exactly right if all agree, which is when greedy decoding gives the word and then stops.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from eval.held_out import HeldOutClips, group_of, layout_of
from eval.metrics import CUT_OFF
from models.layers.init import Params, abstract_params
from models.smolav.config import Layout, SmolAVConfig
from models.smolav.modeling import MediaEmbedder
from models.smolav.preprocess import Chat, EncodedMedia
from models.text.tokenizers import load_smollm2_tokenizer
from train.data.clips import Clip
from train.smolav import language_model
from train.smolav.batches import Batch, Packed, collate, question_rows
from train.smolav.losses import answer_logits, exact_answers

LENGTHS = (512, 1024)  # two compiled shapes: clips up to 14 seconds, and up to 30
TARGETS = 140  # most answer tokens per row
MEDIA_SHARE = 0.75  # of a row that the media may take; the rest is for questions


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
        rows = question_rows(clip, media, self.encode, self.chat, layout, self.config, length, TARGETS)
        return [(row, length) for row in rows]

    def answer(self, row: Packed, media: EncodedMedia, length: int) -> tuple[Int[np.ndarray, " Q"], np.ndarray]:
        """The first token that is chosen for each question, and whether its answer is exactly right."""
        batch = collate([(row, media)], length, TARGETS)
        chosen = np.asarray(self._choose(self.media, self.frozen, batch))
        right, _ = exact_answers(*(jnp.asarray(x) for x in (chosen, batch["target"], batch["question"])))
        firsts = np.cumsum([0, *map(len, row.targets[:-1])])
        return chosen[0, firsts], np.asarray(right)[0, firsts]

    def texts(self, row: Packed, media: EncodedMedia, length: int, words: Sequence[str]) -> list[str]:
        """The answers in words: the right one, or the one that the first chosen token begins, or "other".

        One that begins rightly and continues otherwise ends in `CUT_OFF`.
        """
        beginnings = {self.encode(word)[0]: word for word in words}
        chosen, right = self.answer(row, media, length)
        found = [beginnings.get(int(token), "other") for token in chosen]
        return [
            question.answer if exact else word + CUT_OFF * (word == question.answer)
            for question, word, exact in zip(row.questions, found, right, strict=True)
        ]


def exact_by_group(evaluator: Evaluator, clips: HeldOutClips, numbers: Iterable[int]) -> Iterator[tuple[str, bool]]:
    """Every canonical question of the test clips of these numbers: its group, and whether it is answered rightly."""
    for number, clip, media in clips.numbered(numbers):
        for row, length in evaluator.pack(clip, media, layout_of(number)):
            _, right = evaluator.answer(row, media, length)
            yield from ((group_of(q), bool(exact)) for q, exact in zip(row.questions, right, strict=True))
