"""Captions for pictures and pictures for captions (coco_captions), by their cosine."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mergenet_jax import LossOutput
from models.bert.tokenizer import make_encoder
from models.errors import UserError
from models.layers.init import Params
from train.mergenet.distillation import cross_entropy
from train.mergenet.tasks.bert import tokenizer_for
from train.mergenet.tasks.interface import Data, Examples, Part, Split
from train.mergenet.tasks.pictures import PictureTask, picture_reader

CAPTIONS = 5
RANKS = (1, 5, 10)


def recalls(
    pictures: Float[np.ndarray, "n D"], captions: Float[np.ndarray, "n C D"], block: int = 256
) -> dict[str, float]:
    """Shares of queries with a right answer among the first 1, 5 and 10; of equal scores the right one comes last.

    As in Karpathy and Li 2015 (arXiv 1412.2306, section 4.1): of a picture, any of its own captions is right
    (`text_rK`); of a caption, its picture (`image_rK`). `recall` is the mean of the six.

    Args:
        pictures: unit vectors.
        captions: unit vectors of each picture's captions.
        block: pictures at a time.
    """
    count, each = captions.shape[:2]
    flat = captions.reshape(count * each, -1)
    text, image = [], []
    for start in range(0, count, block):
        rows = np.arange(start, min(start + block, count))
        scores = (pictures[rows] @ flat.T).reshape(len(rows), count, each)
        text += _places(scores.reshape(len(rows), -1), scores[np.arange(len(rows)), rows].max(1), rows, each)
        queries = flat[rows[0] * each : (rows[-1] + 1) * each]
        scores, own = queries @ pictures.T, np.repeat(rows, each)
        image += _places(scores, scores[np.arange(len(own)), own], own, 1)
    found = {
        f"{kind}_r{k}": float(np.mean(np.less(places, k)))
        for kind, places in (("text", text), ("image", image))
        for k in RANKS
    }
    return {"recall": float(np.mean(list(found.values())))} | found


def _places(scores: np.ndarray, best: np.ndarray, own: np.ndarray, each: int) -> list[int]:
    """How many wrong answers are not below the best right one; NaN is not below anything, nor anything below NaN."""
    right = np.arange(scores.shape[1])[None] // each == own[:, None]
    wrong = np.where(right, np.where(np.isnan(best), np.nan, -np.inf)[:, None], scores)
    return np.sum(~(wrong < best[:, None]), 1).tolist()


class Retrieval(PictureTask):
    """Pictures and captions of COCO in one space."""

    KIND = "retrieval"
    METRICS = {"recall": "mean recall"} | {f"{kind}_r{k}": f"{kind} R@{k}" for kind in ("text", "image") for k in RANKS}

    def loss(self, params: Params, stats: Params, batch: Any, key: Array) -> tuple[Float[Array, ""], LossOutput]:
        """Cross entropy of each picture's caption among those of the batch, and the other way round (CLIP).

        Of each picture's captions one is drawn, so that no other row of the batch is right too.
        """
        draw, drop = jax.random.split(key)
        rows = jnp.arange(len(batch["tokens"]))
        chosen = jax.random.randint(draw, rows.shape, 0, CAPTIONS)
        tokens, mask = batch["tokens"][rows, chosen], batch["mask"][rows, chosen]
        pictures = self.model.pictures(params, batch["pictures"])
        captions = self.model.texts(params, tokens, mask, drop)
        scores = self.model.scale(params) * pictures @ captions.T
        return (cross_entropy(scores, rows) + cross_entropy(scores.T, rows)) / 2, LossOutput(stats)

    def answer(self, params: Params, batch: Any) -> dict[str, Array]:
        """Unit vectors of the pictures, and of their captions."""
        tokens, mask = (batch[name].reshape(-1, self.spec.length) for name in ("tokens", "mask"))
        captions = self.model.texts(params, tokens, mask)
        return {
            "pictures": self.model.pictures(params, batch["pictures"]),
            "captions": captions.reshape(-1, CAPTIONS, captions.shape[-1]),
        }

    def prepare(self, data: Data) -> Examples:
        """Pictures with their first five captions."""
        texts = (text for captions in _captions(data, "train") for text in captions)
        tokenizer = tokenizer_for(self.spec, self.model.text.vocab_size, texts)
        encode = make_encoder(tokenizer, self.spec.length)

        def split(name: str) -> Split:
            captions = _captions(data, name)
            pictures = picture_reader(data.open("coco_captions", name), self.model.vision.image_size)
            batch = encode([text for own in captions for text in own])
            shape = (len(captions), CAPTIONS, self.spec.length)
            tokens, mask = batch.tokens.reshape(shape), batch.mask.reshape(shape)

            def read(rows: np.ndarray) -> dict[str, Any]:
                return {"tokens": tokens[rows], "mask": mask[rows], "pictures": pictures(rows)}

            return Split(len(captions), read, lambda found: recalls(found["pictures"], found["captions"]))

        return Examples(split, tokenizer)


def _captions(data: Data, split: str) -> list[list[str]]:
    part: Part = data.open("coco_captions", split, undecoded=("image",))
    found = [[text.decode() for text in example["captions"]["text"][:CAPTIONS]] for example in part]
    if lacking := [number for number, own in enumerate(found) if len(own) < CAPTIONS]:
        raise UserError(
            f"Picture {lacking[0]} of coco_captions has {len(found[lacking[0]])} captions, not {CAPTIONS}; prepare the "
            "data set again."
        )
    return found
