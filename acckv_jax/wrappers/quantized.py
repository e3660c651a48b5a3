"""Keys and values of kept slots as 8-bit or 4-bit integers.

Keys have a scale and a zero point per channel, values per token, as in KIVI (arXiv 2402.02750, section 3).
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from acckv_jax.cache import LayerCache
from acckv_jax.policy import Context
from acckv_jax.storage import SlotStorage
from acckv_jax.wrappers.base import Wrapper

STEPS = {8: 254, 4: 15}
"""Steps from the least to the largest number, by bits; of 8, one more would be -128."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedSlots(SlotStorage):
    """Slots as integers; slot = code * scale + zero.

    Attributes:
        codes: [B, K, C, H] int8, or [B, K, C, H / 2] uint8: the 4-bit codes of two numbers, of which the one in the
            lower bits comes from the first half of H.
        scale: [B, K, 1, H] (one per channel) or [B, K, C, 1] (one per token), float32.
        zero: [B, K, 1, H] or [B, K, C, 1], what code 0 stands for, float32: the middle of the range in 8 bits, its
            beginning in 4.
        free: [B, K, R, H] the reserved slots in the model's type.
        per_channel: which of both (static).
    """

    codes: Int[Array, "B K C H"] | UInt[Array, "B K C H/2"]
    scale: Float[Array, "B K _ _"]
    zero: Float[Array, "B K _ _"]
    free: Float[Array, "B K R H"]
    per_channel: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        dense: Float[Array, "B K S H"],
        valid: Bool[Array, "B K S"],
        free_slots: int,
        *,
        per_channel: bool,
        bits: int = 8,
    ) -> Self:
        """Quantises all slots but the last `free_slots`; what empty slots hold does not matter.

        Raises:
            ValueError: if H is odd, and bits are 4.
        """
        stored = dense.shape[2] - free_slots
        kept, counts = dense[:, :, :stored].astype(jnp.float32), valid[:, :, :stored, None]
        axis = 2 if per_channel else 3
        least = jnp.where(counts, kept, jnp.inf).min(axis, keepdims=True, initial=jnp.inf)
        most = jnp.where(counts, kept, -jnp.inf).max(axis, keepdims=True, initial=-jnp.inf)
        any_valid = least <= most
        start = least if bits == 4 else (least + most) / 2
        zero = jnp.where(any_valid, start, 0.0)
        scale = jnp.where(any_valid & (most > least), (most - least) / STEPS[bits], 1.0)
        codes = jnp.round((kept - zero) / scale)
        return cls(_packed(codes) if bits == 4 else _int8(codes), scale, zero, dense[:, :, stored:], per_channel)

    @property
    def bits(self) -> int:
        """Of a code."""
        return 4 if self.codes.dtype == jnp.uint8 else 8

    def dense(self) -> Float[Array, "B K S H"]:
        """All slots in the model's type."""
        codes = _unpacked(self.codes) if self.bits == 4 else self.codes
        kept = (codes.astype(jnp.float32) * self.scale + self.zero).astype(self.free.dtype)
        return jnp.concatenate([kept, self.free], axis=-2) if self.free.shape[-2] else kept  # of a stack too

    def after(self, q: Float[Array, "B T N H"]) -> Self:
        """The same, as no number is both NaN and infinite, which XLA does not know."""
        first = q[:, 0, :, 0].reshape(*self.codes.shape[:2], -1)[:, :, 0]
        return dataclasses.replace(self, codes=self.codes + _never(first)[:, :, None, None].astype(self.codes.dtype))

    def encode(self, dense: Float[Array, "B K S H"], valid: Bool[Array, "B K S"], free_slots: int) -> Self:
        """Other contents, with scales of their own."""
        return self.of(dense, valid, free_slots, per_channel=self.per_channel, bits=self.bits)

    @property
    def stored_bytes(self) -> int:
        """Codes, scales and zero points."""
        return self.codes.nbytes + self.scale.nbytes + self.zero.nbytes

    def with_free(self, free: Float[Array, "B K R H"]) -> Self:
        """The same with other reserved slots."""
        if not self.free.shape[2]:  # these are the first, constants: on Auto meshes they follow the scales so
            free += _never(self.scale[:, :, :1]).astype(free.dtype)
        return dataclasses.replace(self, free=free)


def _never(x: Float[Array, "*B"]) -> Bool[Array, "*B"]:
    return jnp.isnan(x) & jnp.isinf(x)


def _int8(codes: Float[Array, "B K C H"]) -> Int[Array, "B K C H"]:
    most = STEPS[8] // 2
    return jnp.clip(codes, -most, most).astype(jnp.int8)


def _packed(codes: Float[Array, "B K C H"]) -> UInt[Array, "B K C H/2"]:
    if codes.shape[-1] % 2:
        raise ValueError(f"4 bits are stored two in a byte, and a head has {codes.shape[-1]} channels: use bits=8.")
    lower, upper = jnp.split(jnp.clip(codes, 0, STEPS[4]).astype(jnp.uint8), 2, axis=-1)
    return lower | (upper << 4)


def _unpacked(codes: UInt[Array, "*n B K C H/2"]) -> UInt[Array, "*n B K C H"]:
    return jnp.concatenate([codes & 15, codes >> 4], axis=-1)


@dataclasses.dataclass(frozen=True)
class Quantized(Wrapper):
    """Stores what the inner policy keeps in int8 or int4: about a quarter or an eighth of float32's bytes.

    Tokens being decoded stay in the model's type. They are quantised when they move out of the reserved slots: when the
    policy evicts, or when the next question is appended. Scales and zero points count in `cache_bytes`.

    Attributes:
        inner: the policy inside.
        bits: 8, or 4: two in a byte, for an even head size.

    Raises:
        ValueError: on other bits.

    Example:
        >>> import acckv_jax as kv
        >>> kv.Quantized(kv.AccKV.plus(budget=0.2), bits=4).capacity(1000, layer=0)
        200
    """

    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in STEPS:
            raise ValueError(f"Quantized stores 8 or 4 bits, not {self.bits!r}.")

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """As the inner policy, then quantised."""
        small, carry = super().compress(layer, context)
        return dataclasses.replace(
            small,
            k=QuantizedSlots.of(small.keys, small.valid, small.reserved_slots, per_channel=True, bits=self.bits),
            v=QuantizedSlots.of(small.values, small.valid, small.reserved_slots, per_channel=False, bits=self.bits),
        ), carry
