"""Keys and values of kept slots as 8-bit integers.

Keys have a scale and a zero point per channel, values per token, as in KIVI (arXiv 2402.02750, section 3).
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.cache import LayerCache
from acckv_jax.policy import Context
from acckv_jax.storage import SlotStorage
from acckv_jax.wrappers.base import Wrapper

LEVELS = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedSlots(SlotStorage):
    """Slots as integers; slot = code * scale + zero.

    Attributes:
        codes: [B, K, C, H] int8.
        scale: [B, K, 1, H] (one per channel) or [B, K, C, 1] (one per token), float32.
        zero: [B, K, 1, H] or [B, K, C, 1], the middle of the range, float32.
        free: [B, K, R, H] the reserved slots in the model's type.
        per_channel: which of both (static).
    """

    codes: Int[Array, "B K C H"]
    scale: Float[Array, "B K _ _"]
    zero: Float[Array, "B K _ _"]
    free: Float[Array, "B K R H"]
    per_channel: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls, dense: Float[Array, "B K S H"], valid: Bool[Array, "B K S"], free_slots: int, *, per_channel: bool
    ) -> Self:
        """Quantises all slots but the last `free_slots`; what empty slots hold does not matter."""
        stored = dense.shape[2] - free_slots
        kept, counts = dense[:, :, :stored].astype(jnp.float32), valid[:, :, :stored, None]
        axis = 2 if per_channel else 3
        least = jnp.where(counts, kept, jnp.inf).min(axis, keepdims=True, initial=jnp.inf)
        most = jnp.where(counts, kept, -jnp.inf).max(axis, keepdims=True, initial=-jnp.inf)
        any_valid = least <= most
        zero = jnp.where(any_valid, (least + most) / 2, 0.0)
        scale = jnp.where(any_valid & (most > least), (most - least) / (2 * LEVELS), 1.0)
        codes = jnp.clip(jnp.round((kept - zero) / scale), -LEVELS, LEVELS).astype(jnp.int8)
        return cls(codes, scale, zero, dense[:, :, stored:], per_channel)

    def dense(self) -> Float[Array, "B K S H"]:
        """All slots in the model's type."""
        kept = (self.codes.astype(jnp.float32) * self.scale + self.zero).astype(self.free.dtype)
        return jnp.concatenate([kept, self.free], axis=-2) if self.free.shape[-2] else kept  # of a stack too

    def after(self, q: Float[Array, "B T N H"]) -> Self:
        """The same, as no number is both NaN and infinite, which XLA does not know."""
        first = q[:, 0, :, 0].reshape(*self.codes.shape[:2], -1)[:, :, 0]
        never = jnp.isnan(first) & jnp.isinf(first)
        return dataclasses.replace(self, codes=self.codes + never.astype(jnp.int8)[:, :, None, None])

    def encode(self, dense: Float[Array, "B K S H"], valid: Bool[Array, "B K S"], free_slots: int) -> Self:
        """Other contents, with scales of their own."""
        return self.of(dense, valid, free_slots, per_channel=self.per_channel)

    @property
    def stored_bytes(self) -> int:
        """Codes, scales and zero points."""
        return self.codes.nbytes + self.scale.nbytes + self.zero.nbytes

    def with_free(self, free: Float[Array, "B K R H"]) -> Self:
        """The same with other reserved slots."""
        if not self.free.shape[2]:  # these are the first, constants: on Auto meshes they follow the codes so, of which
            free += (self.codes[:, :, :1] == -LEVELS - 1).astype(free.dtype)  # none is this low
        return dataclasses.replace(self, free=free)


@dataclasses.dataclass(frozen=True)
class Quantized(Wrapper):
    """Stores what the inner policy keeps in int8; about a quarter of float32's bytes, half of bfloat16's.

    Tokens being decoded stay in the model's type. They are quantised when they move out of the reserved slots: when the
    policy evicts, or when the next question is appended. Scales and zero points count in `cache_bytes`.

    Attributes:
        inner: the policy inside.
        bits: 8.

    Example:
        >>> import acckv_jax as kv
        >>> kv.Quantized(kv.AccKV.plus(budget=0.2)).capacity(1000, layer=0)
        200
    """

    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits != 8:
            raise ValueError(f"Quantized stores 8 bits, not {self.bits!r}.")

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """As the inner policy, then quantised."""
        small, carry = super().compress(layer, context)
        keys = QuantizedSlots.of(small.keys, small.valid, small.reserved_slots, per_channel=True)
        values = QuantizedSlots.of(small.values, small.valid, small.reserved_slots, per_channel=False)
        return dataclasses.replace(small, k=keys, v=values), carry
