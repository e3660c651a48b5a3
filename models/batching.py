"""Prompts of several lengths as one batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

import acckv_jax
from acckv_jax import Prompt
from acckv_jax.sharding import ShardingRules, axis_size, dividing, mesh_spec
from models.interface import EmbeddedPrompt

MINIMUM = 4
"""Least number of parts that `joined` makes room for."""


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
    """Chunks as a ragged batch of `length` tokens, its rows divided over the mesh that is set, if they can be.

    Raises:
        ValueError: if some have positions and others none.
    """

    def right(x: np.ndarray, axis: int = 0, fill: int = 0) -> np.ndarray:
        widths = [(0, length - x.shape[axis]) if a == axis else (0, 0) for a in range(x.ndim)]
        return np.pad(x, widths, constant_values=fill)

    rows = np.stack([right(c.rows, fill=-1) for c in chunks]).astype(np.int32)
    inputs = _gather(tuple(c.buffers for c in chunks), rows)
    prompt = acckv_jax.make_prompt(np.stack([right(c.modality) for c in chunks]), np.array([len(c) for c in chunks]))
    axes = [right(c.positions, 1) for c in chunks if c.positions is not None]
    if not axes:
        return _divided(Batch(inputs, prompt, None, None))
    if len(axes) < len(chunks):
        raise ValueError("some of the chunks have rotary positions and others have none; a batch needs one kind.")
    positions = jnp.asarray(np.stack(axes, axis=1).astype(np.int32))
    return _divided(Batch(inputs, prompt, positions, jnp.asarray(np.array([c.delta for c in chunks], np.int32))))


def _divided(batch: Batch) -> Batch:
    mesh, rows = jax.sharding.get_mesh(), len(batch.inputs)
    axis = dividing(ShardingRules().batch, rows)
    if mesh.empty or axis_size(axis) == 1:
        return batch
    (spec,) = mesh_spec(axis)

    def put(x: Array, at: int = 0) -> Array:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*(None,) * at, spec)))

    positions = None if batch.positions is None else put(batch.positions, 1)
    delta = None if batch.delta is None else put(batch.delta)
    return Batch(put(batch.inputs), jax.tree.map(put, batch.prompt), positions, delta)


def in_bucket(chunk: EmbeddedPrompt) -> Batch:
    """A chunk as a batch of one, padded to its bucket."""
    return padded([chunk], acckv_jax.bucket_length(len(chunk)))


def joined(parts: Sequence[Array | np.ndarray]) -> Array:
    """Arrays of one shape, one after the other along the first axis, on the device.

    The last one is repeated to fill a bucket of them, so that few programs are compiled.
    """
    room = acckv_jax.bucket_length(len(parts), minimum=MINIMUM)
    return _concatenate((*parts, *[parts[-1]] * (room - len(parts))))


def filled(rows: np.ndarray, unit: int) -> Array:
    """Rows, and zeros up to what `joined` makes of as many parts of `unit` rows as hold them; at least one part."""
    room = unit * acckv_jax.bucket_length(max(1, -(-len(rows) // unit)), minimum=MINIMUM)
    return jnp.asarray(np.pad(rows.astype(np.float32), [(0, room - len(rows)), *[(0, 0)] * (rows.ndim - 1)]))


@jax.jit
def _concatenate(parts: tuple[Array, ...]) -> Array:
    return jnp.concatenate(parts)


@jax.jit
def _gather(buffers: tuple[tuple[Array, ...], ...], rows: Int[Array, "B L"]) -> Array:
    """[B, L] or [B, L, D]: of each row of the batch the wanted rows of its buffers; zeros where -1 is wanted."""
    batch = []
    for mine, wanted in zip(buffers, rows, strict=True):
        found = jnp.zeros((len(wanted), *mine[0].shape[1:]), mine[0].dtype)
        start = 0
        for buffer in mine:
            here = wanted - start
            inside = ((here >= 0) & (here < len(buffer))).reshape(-1, *(1,) * (buffer.ndim - 1))
            found = jnp.where(inside, buffer[jnp.clip(here, 0, len(buffer) - 1)], found)
            start += len(buffer)
        batch.append(found)
    return jnp.stack(batch)
