"""Prompts of several lengths as one batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

import acckv_jax
from acckv_jax import Prompt
from models.interface import EmbeddedPrompt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Chunks, padded on the right.

    Attributes:
        inputs: [B, T] token ids or [B, T, D] embeddings.
        prompt: modalities and lengths.
        positions: [A, B, T] rotary positions, or None where tokens are counted.
        delta: [B] position of the first generated token minus its index; None beside `positions` None.
    """

    inputs: jax.Array
    prompt: Prompt
    positions: Int[jax.Array, "A B T"] | None
    delta: Int[jax.Array, " B"] | None

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of `acckv_jax.prefill` and `acckv_jax.score`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def padded(chunks: Sequence[EmbeddedPrompt], length: int) -> Batch:
    """Chunks as a ragged batch of `length` tokens.

    Raises:
        ValueError: if some have positions and others none.
    """

    def right(x: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.pad(x, [(0, length - x.shape[axis]) if a == axis else (0, 0) for a in range(x.ndim)])

    inputs = jnp.asarray(np.stack([right(c.inputs) for c in chunks]))
    prompt = acckv_jax.make_prompt(np.stack([right(c.modality) for c in chunks]), np.array([len(c) for c in chunks]))
    axes = [right(c.positions, 1) for c in chunks if c.positions is not None]
    if not axes:
        return Batch(inputs, prompt, None, None)
    if len(axes) < len(chunks):
        raise ValueError("some of the chunks have rotary positions and others have none; a batch needs one kind.")
    positions = jnp.asarray(np.stack(axes, axis=1), jnp.int32)
    return Batch(inputs, prompt, positions, jnp.array([c.delta for c in chunks], jnp.int32))
