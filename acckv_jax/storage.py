"""How keys and values of slots are stored: as plain arrays, or in a form of a policy's own."""

import abc
from collections.abc import Callable
from typing import Self

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


class SlotStorage(abc.ABC):
    """What may stand in `LayerCache.k` and `v` in the place of an array [B, K, S, H]; a registered pytree.

    Only the slots of the prompt are stored in this form. The last slots, which are reserved for new tokens, stay in an
    array `free` of the model's type, which is all that decoding writes to.
    """

    free: Float[Array, "B K R H"]

    @abc.abstractmethod
    def dense(self) -> Float[Array, "B K S H"]:
        """All slots in the model's type."""

    @abc.abstractmethod
    def encode(self, dense: Float[Array, "B K S H"], valid: Bool[Array, "B K S"], free_slots: int) -> Self:
        """Other contents in this form; the last `free_slots` slots stay as they are."""

    @abc.abstractmethod
    def after(self, q: Float[Array, "B T N H"]) -> Self:
        """The same, in a way that XLA can only compute when it has the queries `q` of a step.

        Else it would make the slots dense before a decode loop, for all layers at once. (It drops an
        `optimization_barrier` before it looks for what can be moved.)
        """

    @property
    @abc.abstractmethod
    def stored_bytes(self) -> int:
        """Bytes of the slots that are not free, scales and the like included."""

    @abc.abstractmethod
    def with_free(self, free: Float[Array, "B K R H"]) -> Self:
        """The same with other free slots."""


Slots = Float[Array, "B K S H"] | SlotStorage


def dense(slots: Slots) -> Float[Array, "B K S H"]:
    """All slots as an array."""
    return slots.dense() if isinstance(slots, SlotStorage) else slots


def after(slots: Slots, q: Float[Array, "B T N H"]) -> Slots:
    """All slots, to be made dense no sooner than the queries `q` are known."""
    return slots.after(q) if isinstance(slots, SlotStorage) else slots


def encode_like(slots: Slots, array: Float[Array, "B K S H"], valid: Bool[Array, "B K S"], free_slots: int) -> Slots:
    """`array` in the form of `slots`."""
    return slots.encode(array, valid, free_slots) if isinstance(slots, SlotStorage) else array


def update_free(slots: Slots, stored: int, update: Callable[[Array, int], Array]) -> Slots:
    """Applies `update(array, offset)` where new tokens go: slot number minus offset is the place in that array.

    Args:
        slots: all slots of a layer.
        stored: how many of them are not free.
        update: writes or pads, and leaves slots below `stored` alone.
    """
    if isinstance(slots, SlotStorage):
        return slots.with_free(update(slots.free, stored))
    return update(slots, 0)


def free_like(slots: Slots, count: int) -> Float[Array, "B K R H"]:
    """`count` empty slots in the model's type."""
    array = slots.free if isinstance(slots, SlotStorage) else slots
    return jnp.zeros_like(array[:, :, :count])
