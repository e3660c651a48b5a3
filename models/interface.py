"""What the programs ask of an audio-video language model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from acckv_jax import Decoder, Modality
from models.errors import UserError
from models.layers.init import Params
from models.media.clip import Media, Progress, Span


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedPrompt:
    """A prompt or a piece of one, unpadded: a description of its tokens, and where on the device their inputs lie.

    Splitting and joining change indices alone; `models.batching.padded` gathers the inputs.

    Attributes:
        buffers: arrays on the device, [S, D] embeddings or [S] token ids, whose rows may be more than are used.
        rows: [T] the row of each token, counted through all buffers.
        modality: [T] ids of `acckv_jax.Modality`.
        positions: [A, T] rotary positions in the whole prompt, for models with A axes (M-RoPE); None where tokens are
            simply counted. Text alone needs none: it is given them when it is appended.
        delta: position of the first token after the whole prompt, minus its index.
        whole: false for a piece that was cut off a prompt.
    """

    buffers: tuple[Array, ...]
    rows: Int[np.ndarray, " T"]
    modality: Int[np.ndarray, " T"]
    positions: Int[np.ndarray, "A T"] | None = None
    delta: int = 0
    whole: bool = True

    @classmethod
    def of(
        cls,
        inputs: Int[Array | np.ndarray, " S"] | Float[Array | np.ndarray, "S D"],
        modality: Int[np.ndarray, " T"],
        positions: Int[np.ndarray, "A T"] | None = None,
        delta: int = 0,
    ) -> Self:
        """A prompt from one array, whose first T rows are its tokens; the rest is padding."""
        return cls((jnp.asarray(inputs),), np.arange(len(modality)), modality, positions, delta)

    def __len__(self) -> int:
        return len(self.modality)

    def split(self, at: int) -> tuple["EmbeddedPrompt", "EmbeddedPrompt"]:
        """The first `at` tokens, and the rest."""
        return self._part(slice(None, at)), self._part(slice(at, None))

    def _part(self, part: slice) -> "EmbeddedPrompt":
        positions = None if self.positions is None else self.positions[:, part]
        rows, modality = self.rows[part], self.modality[part]
        return dataclasses.replace(self, rows=rows, modality=modality, positions=positions, whole=False)

    def then(self, text: "EmbeddedPrompt") -> "EmbeddedPrompt":
        """This prompt, and text after it; both must hold embeddings, or both token ids.

        Raises:
            ValueError: if this is a piece of a prompt, or what is appended has positions of its own.
        """
        if not self.whole:
            raise ValueError("text cannot be appended to a piece of a prompt; append it first, and split then.")
        if text.positions is not None:
            raise ValueError("only text can be appended to a prompt; lay out its media together.")
        buffers = (*self.buffers, *text.buffers)
        rows = np.concatenate([self.rows, text.rows + sum(len(buffer) for buffer in self.buffers)])
        modality = np.concatenate([self.modality, text.modality])
        if self.positions is None:
            return EmbeddedPrompt(buffers, rows, modality)
        new = len(self) + self.delta + np.tile(np.arange(len(text)), (len(self.positions), 1))
        return EmbeddedPrompt(buffers, rows, modality, np.concatenate([self.positions, new], axis=1), self.delta)

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
        """The name of its folder, a key of tables such as `models.acckv_tau.TAU`."""
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

    def load_media(self, clip: Path, progress: Progress | None = None, span: Span | None = None) -> Media:
        """Decodes a clip, or a part of it as if it were the whole clip, with the frames that the model wants."""
        ...

    def encode_media(self, media: Media | Sequence[Media], layout: str) -> EmbeddedPrompt:
        """All that precedes the question, as embeddings.

        Raises:
            UserError: on an unknown layout, if there is nothing to see or hear, or more than the model takes.
        """
        ...

    def embed_text(self, ids: Sequence[int]) -> EmbeddedPrompt:
        """Tokens of text as they are."""
        ...

    def encode_question(self, text: str) -> EmbeddedPrompt:
        """The question and what follows it up to the answer, as embeddings.

        Raises:
            UserError: if the question is empty.
        """
        ...

    def encode_next_question(self, answer: str | Sequence[int], text: str) -> EmbeddedPrompt:
        """A further question in a conversation: the answer's end, the turn's end, and a new turn of the user.

        Args:
            answer: the generated tokens that the cache does not hold yet (the last one; it may be a stop token); or the
                answer's text, to be read as a whole.
            text: the question.

        Raises:
            UserError: if the question is empty.
        """
        ...

    def detokenize(self, tokens: list[int]) -> str:
        """Generated tokens as text, without the stop token."""
        ...


def media_sequence(media: Media | Sequence[Media]) -> tuple[Media, ...]:
    """One or several media as a tuple.

    Raises:
        UserError: if there are none.
    """
    several = (media,) if isinstance(media, Media) else tuple(media)
    if not several:
        raise UserError("There is no clip to ask about; give at least one.")
    return several
