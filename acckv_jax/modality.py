"""Modalities of tokens, and the description of a chunk of prompt that travels beside its embeddings."""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


class Modality(enum.IntEnum):
    """What a token is. Special tokens around media are text; tokens made while decoding are generated.

    Example:
        >>> import acckv_jax as kv
        >>> np.repeat([kv.Modality.TEXT, kv.Modality.VIDEO, kv.Modality.TEXT], [1, 3, 2]).tolist()
        [0, 1, 1, 1, 0, 0]
    """

    TEXT = 0
    VIDEO = 1
    AUDIO = 2
    GENERATED = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompt:
    """A batch of ragged rows, padded on the right.

    Attributes:
        modality: [B, T] modality ids (int8); padding may hold anything.
        length: [B] number of real tokens in each row.

    Example:
        >>> import acckv_jax as kv
        >>> prompt = kv.make_prompt(np.array([[0, 1, 1, 2, 0]]))
        >>> prompt.count(kv.Modality.VIDEO).tolist(), prompt.length.tolist()
        ([2], [5])
    """

    modality: Int[Array, "B T"]
    length: Int[Array, " B"]

    @property
    def valid(self) -> Bool[Array, "B T"]:
        """[B, T] true where a token is real."""
        return jnp.arange(self.modality.shape[1])[None, :] < self.length[:, None]

    def count(self, modality: Modality) -> np.ndarray:
        """[B] tokens of one modality per row, read on the host."""
        ids, length = np.asarray(self.modality), np.asarray(self.length)
        return ((ids == modality) & (np.arange(ids.shape[1])[None, :] < length[:, None])).sum(1)


def make_prompt(modality: np.ndarray, length: np.ndarray | None = None) -> Prompt:
    """Checks and builds a `Prompt` on the host.

    Args:
        modality: [B, T] ids from `Modality` but GENERATED: earlier answers in a prompt are text.
        length: [B] real tokens per row; all T if not given.

    Raises:
        ValueError: on a wrong shape, an unknown modality id or a length outside 1..T.

    Example:
        >>> import acckv_jax as kv
        >>> prompt = kv.make_prompt(np.array([[0, 1, 1, 0], [0, 2, 0, 0]]), np.array([4, 3]))
        >>> prompt.valid.tolist()
        [[True, True, True, True], [True, True, True, False]]
    """
    ids = np.asarray(modality)
    if ids.ndim != 2 or not ids.size:
        raise ValueError(f"modality ids must be a non-empty [batch, tokens] array, not of shape {ids.shape}.")
    rows, tokens = ids.shape
    lengths = np.full(rows, tokens) if length is None else np.asarray(length)
    whole = lengths.shape == (rows,) and np.issubdtype(lengths.dtype, np.integer)
    if not whole or (lengths < 1).any() or (lengths > tokens).any():
        raise ValueError(f"lengths must be {rows} whole numbers from 1 to {tokens}, not {lengths.tolist()}.")
    known = [int(m) for m in Modality if m != Modality.GENERATED]
    real = np.arange(tokens)[None, :] < lengths[:, None]
    unknown = set(np.unique(ids[real]).tolist()) - set(known)
    if unknown:
        raise ValueError(f"unknown modality ids {sorted(unknown)} in a prompt; choose from {known}.")
    return Prompt(jnp.asarray(np.where(real, ids, 0), jnp.int8), jnp.asarray(lengths, jnp.int32))


def bucket_length(tokens: int, *, minimum: int = 64, steps_per_octave: int = 4) -> int:
    """The padded length of a prompt of `tokens` tokens: a multiple of an eighth to a quarter of its size.

    With the defaults: 64, 80, 96, 112, 128, 160, ... so that padding adds at most 25 % and few lengths are compiled.

    Raises:
        ValueError: if `tokens` is below 1.

    Example:
        >>> import acckv_jax as kv
        >>> [kv.bucket_length(tokens) for tokens in (10, 65, 500)]
        [64, 80, 512]
    """
    if tokens < 1:
        raise ValueError(f"a prompt needs at least one token, not {tokens}.")
    octave = minimum
    while octave * 2 < tokens:
        octave *= 2
    step = octave // steps_per_octave
    return max(minimum, -(-tokens // step) * step)
