"""Shared by the arms: the trained SmolAV, things to see and hear, and how a target is measured."""

import dataclasses
import functools
import itertools
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from eval.held_out import GROUPS, MOST, HeldOutClips
from eval.packed import Evaluator, exact_by_group
from models.errors import UserError
from models.layers.init import Params, abstract_params
from models.smolav.config import SmolAVConfig
from models.smolav.encoders import Encoders
from models.smolav.modeling import MediaEmbedder
from models.smolav.params import load_smolav
from train.data.features import ClipPool, PictureFeatures, sources_for
from train.mergenet.av.config import Recipe
from train.smolav.align import Examples, answer_words, projector_accuracy, word_embeddings
from train.smolav.config import DEFAULT_CONFIG, read_config


@dataclasses.dataclass(frozen=True)
class Materials:
    """See the module.

    Attributes:
        recipe: which things are used.
        model: the trained SmolAV's sizes.
        trained: its media embedder's parameters, and the language model's under "decoder".
        pictures: training pictures.
        pool: training clips.
        held_out: test pictures and clips.
    """

    recipe: Recipe
    model: SmolAVConfig
    trained: Params
    pictures: PictureFeatures
    pool: ClipPool
    held_out: HeldOutClips

    @classmethod
    def load(cls, recipe: Recipe) -> Self:
        """Fetches what is not in the cache yet.

        Raises:
            UserError: if something cannot be had.
        """
        model, _, trained = load_smolav()
        encoders, run = Encoders.load(model), read_config(DEFAULT_CONFIG)
        pool = ClipPool(run.buckets[run.align_bucket].pool, sources_for("train"), encoders)
        return cls(recipe, model, trained, PictureFeatures("train", encoders), pool, HeldOutClips.load(encoders))

    def __post_init__(self) -> None:
        limits = {
            "source_pictures": len(self.pool.sources.picture_labels),
            "source_clips": self.pool.config.count,
            "test_pictures": len(self.held_out.pool.sources.picture_labels),
            "test_clips": MOST,
        }
        for name, most in limits.items():
            if getattr(self.recipe, name) > most:
                raise UserError(f"{name} can be at most {most}, not {getattr(self.recipe, name)}.")

    @property
    def target(self) -> SmolAVConfig:
        """The target's sizes."""
        return dataclasses.replace(self.model, projector_width=self.recipe.width)

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """Every word that a thing can have."""
        return answer_words(self.pool.sources)

    @functools.cached_property
    def table(self) -> Float[np.ndarray, "W D"]:
        """Their embeddings."""
        embeddings = self.trained["decoder"]["tokens"]["embedding"]
        return word_embeddings(self.words, self.evaluator.encode, embeddings, self.model.embedding_rms)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """The trained language model, to see and hear through the target's projectors."""
        return Evaluator(self.target, self.trained, jnp.bfloat16)

    def training(self, seed: int | None = None) -> Examples:
        """Training examples of a seed's target; without a seed, those of the source."""
        recipe = self.recipe
        shown, clips = np.arange(recipe.source_pictures), np.arange(recipe.source_clips)
        if seed is not None:
            rng = np.random.default_rng([seed, 0])
            shown = np.sort(rng.choice(shown, recipe.pictures, replace=False))
            clips = np.sort(rng.choice(clips, recipe.clips, replace=False))
        return Examples.of(self.words, self.pictures, shown, self.pool, clips, self.model.audio_rate)

    @functools.cached_property
    def testing(self) -> Examples:
        """Held-out pictures and audio tokens."""
        shown, clips = np.arange(self.recipe.test_pictures), range(self.recipe.test_clips)
        held = self.held_out
        return Examples.of(self.words, held.pictures, shown, held.pool, clips, self.model.audio_rate)

    @functools.cached_property
    def question_clips(self) -> tuple[int, ...]:
        """Numbers of the held-out clips that questions are asked about.

        Raises:
            UserError: if there are not so many that are so short.
        """
        wanted, longest = self.recipe.question_clips, self.recipe.question_seconds
        short = (number for number in range(MOST) if self.held_out.pool.clip(number).seconds <= longest)
        found = tuple(itertools.islice(short, wanted))
        if len(found) < wanted:
            raise UserError(
                f"Only {len(found)} of the held-out clips have up to {longest} seconds, and question_clips asks for "
                f"{wanted}; lower it, or raise question_seconds (at most 30)."
            )
        return found

    def measure(self, media: Params, trained: bool = False) -> dict[str, Any]:
        """Of a media embedder (by default of the target's sizes): nearest words, and answers to questions.

        The language model and its sense of time are the trained SmolAV's, and stay as they are.

        Returns:
            Shares that are right: "pictures", "sounds" (audio tokens that are not silent), "questions" and each of
            `GROUPS`; and "asked", the number of questions by group.
        """
        sizes, evaluator = self.target, self.evaluator
        if trained:
            sizes, evaluator = self.model, Evaluator(self.model, self.trained, jnp.bfloat16)
        graph, _ = abstract_params(lambda: MediaEmbedder(sizes, rngs=nnx.Rngs(0)))
        nearest = projector_accuracy((graph, media), self.table, self.testing)
        whole = {**media, "time": self.trained["media"]["time"]}
        found = list(exact_by_group(evaluator.with_media(whole), self.held_out, self.question_clips))
        groups = {group: [exact for own, exact in found if own == group] for group in GROUPS}
        return {
            "pictures": nearest["pictures"],
            "sounds": nearest["sounds without silence"],
            "questions": float(np.mean([exact for _, exact in found])),
            **{group: float(np.mean(exact)) for group, exact in groups.items() if exact},
            "asked": {group: len(exact) for group, exact in groups.items()},
        }
