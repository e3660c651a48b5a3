"""Random prompts and the table of AccKV options for comparing an implementation with the oracle.

Prompts are ragged but share one bucket, and there are few option sets, so that hundreds of cases need one compile per
option set. Keys carry a bias shared by all tokens, as the key bias of Qwen2 gives, of such a strength that a threshold
gate keeps some slots and drops others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.oracles.acckv_numpy import acckv_oracle
from tests.oracles.acckv_scores import AUDIO, TEXT, VIDEO
from tests.oracles.acckv_trace import Trace
from tests.oracles.attention_numpy import Floats, Ints, unit

QUERY_HEADS, KV_HEADS, HEAD_DIM, BUCKET = 4, 2, 16, 96

# Every option of AccKV, by name. Values are keyword arguments of `acckv_oracle`.
OPTION_SETS: dict[str, dict[str, Any]] = {
    "acckv": {"budget": 0.3},
    "acckv_slots": {"budget": 24},
    "acckv_plus": {"budget": 0.3, "rows": "text", "n_min": 64, "split": "proportional", "gate": "none"},
    "text_quantile_refill": {
        "budget": 0.3,
        "rows": "text",
        "n_min": 64,
        "split": "weighted",
        "k_min": 2,
        "gate": "quantile",
        "refill": True,
        "floor_after_gate": True,
    },
    "omni_fit": {"budget": 0.3, "rows": "text", "split": "weighted", "merge": "none", "gate": "none"},
    "text_rows": {"budget": 0.4, "rows": "text"},
    "no_diagonal": {"budget": 0.3, "exclude_diagonal": True},
    "n_min": {"budget": 0.5, "n_min": 16},
    "redistributed": {"budget": 0.4, "priority_stat": "redistributed"},
    "redistributed_text": {"budget": 0.4, "priority_stat": "redistributed", "rows": "text", "exclude_diagonal": True},
    "weighted": {"budget": 0.5, "split": "weighted", "k_min": 4},
    "weighted_refill": {"budget": 0.3, "split": "weighted", "refill": True},
    "proportional": {"budget": 0.4, "split": "proportional"},
    "no_floor": {"budget": 0.3, "floor": 0.0},
    "high_floor": {"budget": 0.4, "floor": 0.4},
    "summary": {"budget": 0.4, "merge": "summary"},
    "summary_quantile_refill": {
        "budget": 0.7,
        "merge": "summary",
        "gate": "quantile",
        "quantile": 0.5,
        "refill": True,
        "floor_after_gate": True,
    },
    "no_merge": {"budget": 0.4, "merge": "none"},
    "no_gate": {"budget": 0.3, "gate": "none"},
    "evict_only": {"budget": 0.3, "gate": "none", "merge": "none"},
    "cross_modal": {"budget": 0.3, "cross_modal_merge": True},
    "cross_modal_refill": {"budget": 0.4, "cross_modal_merge": True, "refill": True},
    "quantile": {"budget": 0.4, "gate": "quantile", "quantile": 0.4},
    "centred": {"budget": 0.5, "gate": "centred", "tau": 0.0},
    "refill": {"budget": 0.4, "refill": True},
    "refill_floor": {"budget": 0.5, "refill": True, "floor_after_gate": True, "floor": 0.2},
    "unrotated": {"budget": 0.4, "unrotated": True},
    "unrotated_centred": {"budget": 0.4, "unrotated": True, "gate": "centred", "tau": 0.0, "refill": True},
    "everything": {"budget": 1.0},
}


@dataclass(frozen=True)
class Case:
    """One unpadded prompt at one layer: q [N, l, H], k, v, unrotated_keys [K, l, H], modality [l]."""

    q: Floats
    k: Floats
    v: Floats
    unrotated_keys: Floats
    modality: Ints

    @property
    def length(self) -> int:
        return len(self.modality)


def rotate(x: Floats, theta: float = 10_000.0) -> Floats:
    """RoPE (half-split form) of x [..., l, H] at positions 0 .. l - 1."""
    length, half = x.shape[-2], x.shape[-1] // 2
    angle = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], axis=-1
    )


def random_modality(rng: np.random.Generator, length: int, layout: str) -> Ints:
    """[l] ids: text, then media in time chunks (interleaved) or one modality after the other (blocks), then text."""
    head, tail = int(rng.integers(1, 4)), int(rng.integers(2, 4))
    body = length - head - tail
    media: list[int] = []
    if layout == "interleaved":
        video, audio = int(rng.integers(4, 9)), int(rng.integers(2, 7))
        while len(media) < body:
            media += [VIDEO] * video + [AUDIO] * audio
        media = media[:body]
    elif layout == "blocks":
        order = [VIDEO, AUDIO] if rng.random() < 0.7 else [AUDIO, VIDEO]
        first = int(rng.integers(body // 4, 3 * body // 4))
        media = [order[0]] * first + [TEXT] + [order[1]] * (body - first - 1)
    else:
        raise ValueError(f"Unknown layout {layout!r}: use interleaved or blocks.")
    return np.array([TEXT] * head + media + [TEXT] * tail, dtype=np.int64)


def single(x: Floats) -> Floats:
    """x rounded to float32 values, so that a float32 implementation sees exactly the oracle's input."""
    return x.astype(np.float32).astype(np.float64)


def random_case(
    rng: np.random.Generator,
    *,
    layout: str,
    length: int | None = None,
    tau: float = 0.9,
    query_heads: int = QUERY_HEADS,
    kv_heads: int = KV_HEADS,
    dim: int = HEAD_DIM,
) -> Case:
    """A prompt whose keys share a bias, set so that cosines to the mean media direction spread on both sides of `tau`.

    The bias lies in the slow half of the rotary frequencies, as trained key biases do, so that it survives RoPE.
    """
    length = int(rng.integers(40, BUCKET + 1)) if length is None else length
    modality = random_modality(rng, length, layout)
    noise = rng.standard_normal((kv_heads, length, dim)) * np.exp(0.5 * rng.standard_normal((kv_heads, length, 1)))
    bias = np.zeros((kv_heads, 1, dim))
    slow = [d for d in range(dim) if d % (dim // 2) >= dim // 4]
    bias[..., slow] = rng.standard_normal((kv_heads, 1, len(slow)))
    bias = unit(bias)
    weak, strong = 0.0, 1000.0
    for _ in range(40):
        strength = (weak + strong) / 2
        media = unit(rotate(noise + strength * bias))[:, modality != TEXT]
        typical = np.median(np.einsum("kjh,kh->kj", media, media.mean(axis=1)))
        weak, strong = (weak, strength) if typical > tau + 0.01 else (strength, strong)
    unrotated = noise + strong * bias
    q = rotate(rng.standard_normal((query_heads, length, dim)) * 1.5)
    v = rng.standard_normal((kv_heads, length, dim))
    return Case(single(q), single(rotate(unrotated)), single(v), single(unrotated), modality)


def run_oracle(case: Case, options: Mapping[str, Any]) -> Trace:
    """The oracle on a case; the option `unrotated` passes the unrotated keys on."""
    options = dict(options)
    unrotated = case.unrotated_keys if options.pop("unrotated", False) else None
    return acckv_oracle(case.q, case.k, case.v, case.modality, unrotated_keys=unrotated, **options)


def decided_cases(seed: int, options: Mapping[str, Any], count: int, margin: float = 1e-5) -> list[tuple[Case, Trace]]:
    """`count` cases (both layouts in turn) in which no decision is nearer than `margin` to its turning point.

    Nearer decisions depend on float32 rounding and prove nothing; they are drawn again (a few per cent).
    """
    rng = np.random.default_rng(seed)
    found: list[tuple[Case, Trace]] = []
    while len(found) < count:
        case = random_case(rng, layout=("interleaved", "blocks")[len(found) % 2])
        trace = run_oracle(case, options)
        if trace.margin >= margin:
            found.append((case, trace))
    return found


def pad(cases: Sequence[Case], bucket: int = BUCKET, fill: float = 0.0) -> dict[str, np.ndarray]:
    """Cases as one ragged batch, padded on the right: q [B, T, N, H], k, v, unrotated_keys [B, S, K, H] float32,
    modality [B, S] (0 where padded), lengths [B] int32. `fill` is what padding holds."""
    batch: dict[str, np.ndarray] = {"lengths": np.array([case.length for case in cases], dtype=np.int32)}
    for name in ("q", "k", "v", "unrotated_keys"):
        heads, _, dim = getattr(cases[0], name).shape
        batch[name] = np.full((len(cases), bucket, heads, dim), fill, dtype=np.float32)
        for row, case in enumerate(cases):
            batch[name][row, : case.length] = np.swapaxes(getattr(case, name), 0, 1)
    batch["modality"] = np.zeros((len(cases), bucket), dtype=np.int32)
    for row, case in enumerate(cases):
        batch["modality"][row, : case.length] = case.modality
    return batch


def random_stream(
    rng: np.random.Generator,
    steps: int,
    *,
    query_heads: int = QUERY_HEADS,
    kv_heads: int = KV_HEADS,
    dim: int = HEAD_DIM,
) -> tuple[Floats, Floats, Floats]:
    """Decode tokens q [T, N, H], k, v [T, K, H] whose heavy hitters change: what the queries look for wanders, and keys
    now and then match it strongly. With plain noise the first heavy hitters would stay for good."""
    walk = np.cumsum(0.3 * rng.standard_normal((steps, kv_heads, dim)), axis=0)
    sought = unit(walk)
    strength = 6.0 * (rng.random((steps, kv_heads, 1)) < 0.15)
    k = rng.standard_normal((steps, kv_heads, dim)) + strength * sought
    own = np.repeat(sought, query_heads // kv_heads, axis=1)
    q = rng.standard_normal((steps, query_heads, dim)) + 5.0 * own
    return single(q), single(k), single(rng.standard_normal((steps, kv_heads, dim)))
