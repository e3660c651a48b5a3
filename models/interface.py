"""What the programs ask of a model, and how modules are held: a graph definition beside a plain dict of parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from acckv_jax import Modality, StepFn
from models.media import Media

Params = dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A piece of a prompt, unpadded.

    Attributes:
        inputs: token ids [T], or embeddings [T, D] where media are among them.
        modality: [T] ids of `acckv_jax.Modality`.
    """

    inputs: Int[np.ndarray, " T"] | Float[np.ndarray, "T D"]
    modality: Int[np.ndarray, " T"]

    def __len__(self) -> int:
        return len(self.modality)

    def split(self, at: int) -> tuple["Chunk", "Chunk"]:
        """The first `at` tokens, and the rest."""
        return Chunk(self.inputs[:at], self.modality[:at]), Chunk(self.inputs[at:], self.modality[at:])

    def then(self, other: "Chunk") -> "Chunk":
        """Both chunks, one after the other; both must hold embeddings, or both token ids."""
        return Chunk(np.concatenate([self.inputs, other.inputs]), np.concatenate([self.modality, other.modality]))

    def count(self, modality: Modality) -> int:
        """Tokens of one modality."""
        return int((self.modality == modality).sum())


class AVModel(Protocol):
    """An audio-video language model, ready to answer questions about clips."""

    @property
    def name(self) -> str:
        """As given on the command line."""
        ...

    @property
    def step(self) -> StepFn:
        """The decoder for `acckv_jax`."""
        ...

    @property
    def params(self) -> Params:
        """The decoder's parameters."""
        ...

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        ...

    @property
    def context(self) -> int:
        """Most tokens that the decoder can tell apart."""
        ...

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) that frames are read at."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second that are read."""
        ...

    @property
    def tokens_per_second(self) -> float:
        """Tokens that a second of picture and sound makes, to say how much to shorten."""
        ...

    @property
    def stop(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        ...

    @property
    def tau(self) -> float:
        """Threshold of AccKV's gate for this family of decoders."""
        ...

    def prefix(self, media: Media, layout: str) -> Chunk:
        """All that precedes the question, as embeddings."""
        ...

    def question(self, text: str) -> Chunk:
        """The question and what follows it up to the answer, as embeddings."""
        ...

    def text(self, tokens: list[int]) -> str:
        """Generated tokens as text, without the stop token."""
        ...


def define(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """The graph definition of a module and its parameters as shapes, without allocating any.

    Args:
        make: builds the module, for instance ``lambda: Decoder(config, rngs=nnx.Rngs(0))``.

    Returns:
        The graph definition, and a nested dict of ``jax.ShapeDtypeStruct``.
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, nnx.to_pure_dict(state)


def create(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """The graph definition of a module and its freshly initialised parameters."""
    graph, state = nnx.split(make())
    return graph, nnx.to_pure_dict(state)
