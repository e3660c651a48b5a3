"""Rotary position embeddings: one axis, or several axes over sections of the head (M-RoPE)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rotation = tuple[Float[Array, "B T H/2"], Float[Array, "B T H/2"]]


def rotation(
    positions: Int[Array, "B T"] | Int[Array, "A B T"],
    head_dim: int,
    theta: float,
    sections: tuple[int, ...] | None = None,
) -> Rotation:
    """Cosine and sine tables, float32, shared by all layers.

    Args:
        positions: [B, T], or [A, B, T] with one position per axis (time, height, width) where `sections` is given.
        head_dim: H, even.
        theta: base of the geometric series of frequencies (RoFormer, section 3.2.2).
        sections: frequencies per axis, summing to H/2: the chunked M-RoPE of Qwen2-VL (arXiv 2409.12191, section 2.1).
            One-axis positions serve every section.

    Raises:
        ValueError: if the sections do not sum to H/2, or their number is not the number of position axes.
    """
    frequencies = rotary_frequencies(head_dim, theta)
    if sections is None or positions.ndim == 2:
        angles = positions[..., None].astype(jnp.float32) * frequencies.reshape(1, 1, -1)
        return jnp.cos(angles), jnp.sin(angles)
    if sum(sections) != head_dim // 2 or len(sections) != positions.shape[0]:
        raise ValueError(
            f"M-RoPE sections {sections} must sum to head_dim/2 = {head_dim // 2}, one for each of the "
            f"{positions.shape[0]} position axes."
        )
    axis = jnp.repeat(jnp.arange(len(sections)), jnp.array(sections), total_repeat_length=head_dim // 2)
    angles = positions[axis].transpose(1, 2, 0).astype(jnp.float32) * frequencies.reshape(1, 1, -1)
    return jnp.cos(angles), jnp.sin(angles)


def rotary_frequencies(head_dim: int, theta: float) -> Float[Array, " H/2"]:
    """Radians per position of each pair."""
    return 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def rotate(x: Float[Array, "B T N H"], table: Rotation) -> Float[Array, "B T N H"]:
    """Rotates the pairs (x[i], x[i + H/2]) of every head, in float32."""
    cos, sin = (t[:, :, None, :] for t in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
