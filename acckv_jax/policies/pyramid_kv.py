"""PyramidKV: SnapKV with a budget that falls linearly with depth (Cai et al. 2024, arXiv 2406.02069, section 4.2)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from acckv_jax.budget import few_levels, looked_up
from acckv_jax.policies.snapkv import SnapKV


@dataclasses.dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV, whose lower layers keep more and whose upper layers keep less; the budget is their mean.

    The last layer keeps the budget over `beta`, the first one as much more than the budget as the last one keeps less,
    and those between lie on a line, rounded half to even. No layer keeps fewer than `window_size` tokens, or more than
    all but `window_size` of them: an end of the line stops there, and the other end moves as far the other way, so that
    the mean stays. (With a number of slots as its budget the line is the same for all prompts, so that no layer
    allocates more for short ones; a layer that may keep more than a prompt has keeps all of it.) Valid slots are exact.
    The layers lie in at most `levels` stacks, each of which allocates what its largest layer needs.

    Attributes:
        window_size: see `SnapKV`.
        kernel_size: see `SnapKV`.
        beta: the budget over what the last layer keeps; larger is steeper.
        levels: most different capacities.
        num_layers: of the decoder; `prefill` and `prune` fill it in.

    Example:
        >>> import acckv_jax as kv
        >>> policy = kv.PyramidKV(budget=0.2, window_size=16).for_layers(4)
        >>> [policy.capacity(1000, layer) for layer in range(4)]
        [384, 261, 139, 16]
    """

    beta: int = 20
    levels: int = 4
    num_layers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "levels", "num_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")

    def check_layers(self, num_layers: int) -> None:
        """The number of layers, where it is given, must be the decoder's."""
        if self.num_layers not in (None, num_layers):
            raise ValueError(
                f"PyramidKV is made for {self.num_layers} layers, and the decoder has {num_layers}: leave num_layers "
                "out."
            )

    def for_layers(self, num_layers: int) -> "PyramidKV":
        """The same policy with the number of layers."""
        self.check_layers(num_layers)
        return dataclasses.replace(self, num_layers=num_layers)

    def capacity(self, bucket: int, layer: int) -> int:
        """What the longest row may hold in the layer, raised to one of few levels."""
        largest = np.maximum(_slots(self, bucket).max(1), 1)
        return few_levels(tuple(largest.tolist()), self.levels)[layer]

    def row_budget(self, length: Int[Array, " B"], bucket: int, layer: int | Array) -> Int[Array, " B"]:
        """[B] slots that each row may hold in the layer, whose number may be traced."""
        slots = _slots(self, bucket)
        return looked_up(jnp.asarray(slots)[layer] if isinstance(layer, jax.Array) else slots[layer], length)


@functools.cache
def _slots(policy: PyramidKV, longest: int) -> Int[np.ndarray, "L n"]:
    """Slots of every layer for rows of 0 to `longest` tokens.

    Raises:
        ValueError: if the number of layers is not known.
    """
    layers = policy.num_layers
    if layers is None:
        raise ValueError("PyramidKV's budgets depend on the number of layers: call policy.for_layers(num_layers).")
    length = np.arange(longest + 1.0)
    mean = policy.budget * length if policy.is_fraction else np.full_like(length, policy.budget)
    least = np.minimum(np.maximum(mean / policy.beta, policy.window_size), mean)
    most = 2 * mean - least
    if policy.is_fraction:
        most = np.minimum(most, np.maximum(length - policy.window_size, mean))
    first, step = (most, (2 * most - 2 * mean) / (layers - 1)) if layers > 1 else (mean, 0.0)
    line = np.round(first - np.arange(layers)[:, None] * step)
    return np.minimum(line, length).astype(np.int32)
