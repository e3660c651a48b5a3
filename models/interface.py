"""What the programs ask of an audio-video language model."""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from acckv_jax import Decoder, Modality
from models.layers.init import Params
from models.media.clip import Media, Progress


@dataclasses.dataclass(frozen=True)
class EmbeddedPrompt:
    """A prompt or a piece of one, unpadded.

    Attributes:
        inputs: token ids [T], or embeddings [T, D] where media are among them.
        modality: [T] ids of `acckv_jax.Modality`.
        positions: [A, T] rotary positions in the whole prompt, for models with A axes (M-RoPE); None where tokens are
            simply counted. Text alone needs none: it is given them when it is appended.
        delta: position of the first token after the whole prompt, minus its index.
        whole: false for a piece that was cut off a prompt.
    """

    inputs: Int[np.ndarray, " T"] | Float[np.ndarray, "T D"]
    modality: Int[np.ndarray, " T"]
    positions: Int[np.ndarray, "A T"] | None = None
    delta: int = 0
    whole: bool = True

    def __len__(self) -> int:
        return len(self.modality)

    def split(self, at: int) -> tuple["EmbeddedPrompt", "EmbeddedPrompt"]:
        """The first `at` tokens, and the rest."""
        head, tail = slice(None, at), slice(at, None)
        return self._part(head), self._part(tail)

    def _part(self, part: slice) -> "EmbeddedPrompt":
        positions = None if self.positions is None else self.positions[:, part]
        inputs, modality = self.inputs[part], self.modality[part]
        return dataclasses.replace(self, inputs=inputs, modality=modality, positions=positions, whole=False)

    def then(self, text: "EmbeddedPrompt") -> "EmbeddedPrompt":
        """This prompt, and text after it; both must hold embeddings, or both token ids.

        Raises:
            ValueError: if this is a piece of a prompt, or what is appended has positions of its own.
        """
        if not self.whole:
            raise ValueError("text cannot be appended to a piece of a prompt; append it first, and split then.")
        if text.positions is not None:
            raise ValueError("only text can be appended to a prompt; lay out its media together.")
        inputs = np.concatenate([self.inputs, text.inputs])
        modality = np.concatenate([self.modality, text.modality])
        if self.positions is None:
            return EmbeddedPrompt(inputs, modality)
        new = len(self) + self.delta + np.tile(np.arange(len(text)), (len(self.positions), 1))
        return EmbeddedPrompt(inputs, modality, np.concatenate([self.positions, new], axis=1), self.delta)

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
    def family(self) -> str:
        """Name of its folder: a key of tables such as `models.acckv_tau.TAU`."""
        ...

    @property
    def decoder(self) -> Decoder:
        """The decoder as `acckv_jax` takes it."""
        ...

    @property
    def params(self) -> Params:
        """The decoder's parameters."""
        ...

    @property
    def max_context(self) -> int:
        """Most tokens that the decoder can tell apart."""
        ...

    @property
    def layouts(self) -> tuple[str, ...]:
        """Names of the orders of media tokens that it knows, its own first."""
        ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        ...

    def load_media(self, clip: Path, progress: Progress | None = None) -> Media:
        """Decodes a clip, with the frames that the model wants."""
        ...

    def encode_media(self, media: Media, layout: str) -> EmbeddedPrompt:
        """All that precedes the question, as embeddings."""
        ...

    def encode_question(self, text: str) -> EmbeddedPrompt:
        """The question and what follows it up to the answer, as embeddings."""
        ...

    def detokenize(self, tokens: list[int]) -> str:
        """Generated tokens as text, without the stop token."""
        ...
