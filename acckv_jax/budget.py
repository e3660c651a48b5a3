"""Budgets: how many slots a row may hold, and how many a layer allocates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from acckv_jax.modality import Modality, Prompt

Budget = float | int


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Tokens of each row by modality, as NumPy arrays on the host.

    Attributes:
        text: [B] text tokens.
        video: [B] video tokens.
        audio: [B] audio tokens.

    Example:
        >>> import acckv_jax as kv
        >>> counts = kv.TokenCounts(text=np.array([8]), video=np.array([40]), audio=np.array([16]))
        >>> kv.AccKV(budget=0.1).check(counts)
        Traceback (most recent call last):
        ValueError: budget 0.1 keeps 6 of the 64 prompt tokens of row 0, but text, which is kept whole, needs 9: ...
    """

    text: np.ndarray
    video: np.ndarray
    audio: np.ndarray

    @property
    def length(self) -> np.ndarray:
        """[B] tokens in all."""
        return self.text + self.video + self.audio


def count_tokens(*chunks: Prompt) -> TokenCounts:
    """Counts the tokens of a prompt that arrives in chunks (host read).

    Example:
        >>> import acckv_jax as kv
        >>> counts = kv.count_tokens(kv.make_prompt(np.array([[0, 1, 1, 2]])), kv.make_prompt(np.array([[0, 0]])))
        >>> counts.text.tolist(), counts.length.tolist()
        ([3], [6])
    """
    modalities = (Modality.TEXT, Modality.VIDEO, Modality.AUDIO)
    return TokenCounts(*(np.stack([c.count(m) for c in chunks]).sum(0) for m in modalities))


def check_budget(budget: Budget) -> None:
    """Checks a budget on its own.

    Raises:
        ValueError: unless it is a float in (0, 1] (fraction of the prompt) or an int of at least 1 (slots).
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ValueError(f"a budget is a fraction such as 0.2 or a number of slots such as 512, not {budget!r}.")
    if isinstance(budget, float) and not 0.0 < budget <= 1.0:
        raise ValueError(f"budget {budget} is no fraction of the prompt: give a decimal above 0.0 and at most 1.0.")
    if isinstance(budget, int) and budget < 1:
        raise ValueError(f"budget {budget} is no number of slots: give an integer of at least 1.")


def slots_of(budget: Budget, length: int) -> int:
    """Slots that a row of `length` tokens may hold: round(fraction * length), half to even, or min(slots, length)."""
    return min(length, round(budget * length) if isinstance(budget, float) else budget)


TEXT_NEEDS = "text, which is kept whole, needs"


def check_slots(budget: Budget, counts: TokenCounts, need: np.ndarray | int, why: str) -> None:
    """Checks that `need` slots (at most the whole row) fit into the budget of every row.

    Args:
        budget: the budget.
        counts: tokens of each row.
        need: [B] slots that a policy cannot do without, or one number for all rows.
        why: what needs them, as the beginning of a sentence that ends with their number.

    Raises:
        ValueError: naming the row and the smallest possible budget.
    """
    needed = np.minimum(need, counts.length)
    for row, (length, slots) in enumerate(zip(counts.length.tolist(), needed.tolist(), strict=True)):
        have = slots_of(budget, length)
        if have < slots:
            raise ValueError(
                f"budget {budget} keeps {have} of the {length} prompt tokens of row {row}, but {why} {slots}: the "
                f"smallest possible budget is {slots} (or the fraction {_smallest_fraction(slots, length)})."
            )


def _smallest_fraction(slots: int, length: int) -> float:
    """A fraction of two decimals or more, rounded up, that keeps at least `slots` of `length` tokens."""
    for digits in range(2, 10):
        fraction = float(np.ceil(slots / length * 10**digits) / 10**digits)
        if slots_of(fraction, length) >= slots and fraction <= 1.0:
            return fraction
    return 1.0


def row_slots(budget: Budget, length: Int[Array, "*B"], longest: int) -> Int[Array, "*B"]:
    """`slots_of` on the device, for lengths up to `longest`: float32 would round differently."""
    return looked_up(np.array([slots_of(budget, n) for n in range(longest + 1)]), length)


def rounded_share(share: float, number: Int[Array, "*B"], most: int) -> Int[Array, "*B"]:
    """round(share * number), half to even and exact, for numbers from 0 to `most`."""
    return looked_up(np.array([round(share * n) for n in range(most + 1)]), number)


def floored_share(share: float, number: Int[Array, "*B"], most: int) -> Int[Array, "*B"]:
    """The whole part of share * number, exact, for numbers from 0 to `most`."""
    return looked_up(np.array([int(share * n) for n in range(most + 1)]), number)


def looked_up(table: Int[Array | np.ndarray, " n"], at: Int[Array, "*B"]) -> Int[Array, "*B"]:
    """Entries of a table that starts at 0, as a sum of its steps: a gather would need its sharding."""
    difference = jnp.diff if isinstance(table, jax.Array) else np.diff
    steps = difference(table, prepend=0).astype(np.int32).reshape(*(1,) * at.ndim, -1)
    return jnp.where(at[..., None] >= np.arange(len(table)).reshape(steps.shape), steps, 0).sum(-1, dtype=jnp.int32)


def few_levels(capacities: tuple[int, ...], levels: int) -> tuple[int, ...]:
    """Capacities of layers, each raised to one of at most `levels`: evenly spaced, and as low as those it serves."""
    if len(set(capacities)) <= levels:
        return capacities
    least, most = min(capacities), max(capacities)
    step = -(-(most - least) // levels)
    group = [max(1, -(-(capacity - least) // step)) for capacity in capacities]
    largest = {g: max(c for c, own in zip(capacities, group, strict=True) if own == g) for g in group}
    return tuple(largest[g] for g in group)
