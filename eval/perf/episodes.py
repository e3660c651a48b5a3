"""Whether a device computes what the CPU computes: one episode of every policy, compared value by value.

An episode reads a ragged batch of two prompts and prunes it, decodes with random tokens, asks a further question on the
cache, and decodes again. The decoder is the small one of `acckv_jax.testing`. The reference is the same program in
float32 on the CPU, over the same weights: those of a run in bfloat16 are rounded for both.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import acckv_jax as kv
from acckv_jax.attention import Implementation
from acckv_jax.testing import TinyTransformer

TOKENS, SHORT, QUESTION, STEPS = 320, 270, 8, 6
"""Tokens of the prompts, more than one block of rows on any processor; of the question; decode steps."""
GAINS = {"q": np.float32(6), "k": np.float32(6), "v": np.float32(1.5), "o": np.float32(1.5)}
"""Of the decoder's weights, so that few tokens hold most of the attention, and half of the logits come from it."""
CHECKED: dict[str, kv.CachePolicy] = {name: kv.make_policy(name, budget=0.4) for name in kv.POLICIES} | {
    "ada_kv(snapkv)": kv.AdaKV(kv.SnapKV(budget=0.4)),
    "clie(snapkv)": kv.CLIE(kv.SnapKV(budget=0.4), scored_layers=1),
    "critical_kv(snapkv)": kv.CriticalKV(kv.SnapKV(budget=0.4)),
    "fastv": kv.FastV(budget=0.4, filter_layer=1),  # the decoder has two layers
    "evict_every(h2o)": kv.EvictEvery(kv.H2O(budget=0.4), 4),
    "per_layer(acckv_plus)": kv.PerLayer(kv.AccKV.plus(budget=0.4), shares=(1.25, 0.75)),
    "protected(snapkv)": kv.Protected(kv.SnapKV(budget=0.4), first=3, last=5),
    "quantized(acckv)": kv.Quantized(kv.AccKV(budget=0.4)),
    "smoothed(snapkv)": kv.Smoothed(kv.SnapKV(budget=0.4)),
}
"""Every policy, and every wrapper once."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a device may be from the reference.

    Attributes:
        prompt: largest error of the prompts' logits, as a share of the largest logit.
        later: likewise of the logits after pruning, where a slot more or less may have been kept.
        kept: least share of the reference's slots that must be kept.
    """

    prompt: float
    later: float
    kept: float


TOLERANCES = {"float32": Tolerance(1e-4, 1e-3, 0.995), "bfloat16": Tolerance(1e-2, 5e-2, 0.98)}
"""By type of the parameters."""


class Episode(NamedTuple):
    """What an episode returns: logits [B, V] of the prompts and later ones, and the pruned cache."""

    prompt: Any
    later: tuple[Any, ...]
    pruned: kv.KVCache
    end: kv.KVCache


@dataclasses.dataclass(frozen=True)
class Check:
    """One policy in one type.

    Attributes:
        policy: its name.
        dtype: of the parameters.
        scans: whether the layers run in a scan.
        prompt: error of the prompts' logits, as in `Tolerance`.
        later: likewise.
        kept: likewise.
        finite: whether no NaN was seen on the way.
    """

    policy: str
    dtype: str
    scans: bool
    prompt: float
    later: float
    kept: float
    finite: bool

    @property
    def passed(self) -> bool:
        """Whether all is within the tolerances; a NaN is not."""
        most = TOLERANCES[self.dtype]
        return self.finite and self.prompt <= most.prompt and self.later <= most.later and self.kept >= most.kept


def random_token(logits: jax.Array, key: jax.Array) -> jax.Array:
    """A sampler that does not look at the logits, so that all runs decode the same tokens."""
    return jax.random.randint(key, logits.shape[:1], 0, TOKENS, jnp.int32)


def run_episode(
    decoder: kv.Decoder, policy: kv.CachePolicy, params: Any, tokens: jax.Array, prompt: kv.Prompt
) -> Episode:
    """Prefill, a decode loop and a step; a question, a step; as NumPy arrays. Policies share what follows the prune."""
    room, loop = policy.reserved_slots(STEPS + 1), policy.while_decoding()
    question = kv.make_prompt(np.zeros((len(tokens), QUESTION), int))
    if policy.second_pass:
        logits, scored = kv.jitted.score(decoder, params, tokens, prompt, (policy,))
        scored = kv.jitted.probe(decoder, params, tokens[:, :QUESTION], question, scored, (policy,))
        cache = kv.prune(scored, policy, reserved_slots=room)
    else:
        logits, cache = kv.jitted.prefill(decoder, params, tokens, prompt, policy, reserved_slots=room)
    pruned = jax.device_get(cache)
    state = kv.start_decoding(logits, cache, jax.random.key(1), sampler=random_token)
    _, _, state = kv.jitted.decode(decoder, params, state, loop, steps=STEPS, sampler=random_token)
    token, active = state.token, state.active
    after_loop, cache = kv.jitted.decode_step(decoder, params, token, state.cache, loop, active)
    room = loop.reserved_slots(1)
    answer, cache = kv.jitted.extend(decoder, params, tokens[:, :QUESTION], question, cache, loop, reserved_slots=room)
    last, cache = kv.jitted.decode_step(decoder, params, token, cache, loop, active)
    return Episode(
        pruned=pruned, **jax.device_get({"prompt": logits, "later": (after_loop, answer, last), "end": cache})
    )


def episode_on(device: Any, decoder: kv.Decoder, policy: kv.CachePolicy, params: Any, dtype: Any) -> Episode:
    """The episode on a device, as NumPy arrays."""
    kinds = [kv.Modality.TEXT, kv.Modality.VIDEO, kv.Modality.AUDIO, kv.Modality.TEXT]
    modality = np.repeat(kinds, [4, TOKENS // 2, TOKENS // 2 - 8, 4])[None].repeat(2, axis=0)
    draw = np.random.default_rng(0)
    # No token twice in a prompt: its keys would differ by rounding only, and a policy be undecided between them.
    tokens = np.stack([draw.permutation(TOKENS) for _ in modality]).astype(np.int32)
    with jax.default_device(device), jax.default_matmul_precision("highest" if dtype == jnp.float32 else None):
        prompt = kv.make_prompt(modality, np.array([TOKENS, SHORT]))
        arguments = jax.device_put((jax.tree.map(lambda x: x.astype(dtype), params), tokens, prompt), device)
        return run_episode(decoder, policy, *arguments)


def checks(device: Any, reference: Any, implementation: Implementation | None) -> Iterator[Check]:
    """Compares every policy on `device`, in both types and with and without a scan.

    Args:
        device: that is checked.
        reference: the CPU.
        implementation: of attention on `device`; the reference has the CPU's.
    """
    model = TinyTransformer()
    with jax.default_device(reference):
        whole = jax.device_get(model.init(jax.random.key(0), vocabulary=TOKENS))
    whole = {name: x * GAINS.get(name, np.float32(1)) for name, x in whole.items()}
    plain = kv.Decoder(model, model.num_layers)
    for name, policy in CHECKED.items():
        for dtype in TOLERANCES:
            params = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype).astype(np.float32), whole)
            expected = episode_on(reference, plain, policy, params, jnp.float32)
            for scans in (False, True):
                step = dataclasses.replace(model, scans=scans)
                decoder = kv.Decoder(step, model.num_layers, scans, implementation)
                found = episode_on(device, decoder, policy, params, jnp.dtype(dtype))
                yield compared(name, dtype, scans, found, expected)


def compared(name: str, dtype: str, scans: bool, found: Episode, expected: Episode) -> Check:
    """The largest differences between two episodes."""
    return Check(
        policy=name,
        dtype=dtype,
        scans=scans,
        prompt=_error(found.prompt, expected.prompt),
        later=_error(np.stack(found.later), np.stack(expected.later)),
        kept=_kept(found.pruned, expected.pruned),
        finite=all(bool(layer.finite.all()) for layer in found.end.stacks),
    )


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    difference = np.abs(found.astype(np.float32) - expected)
    return float(difference.max() / np.abs(expected).max())


def _kept(found: kv.KVCache, expected: kv.KVCache) -> float:
    """Share of the tokens in `expected` that `found` has in the same row, layer and head."""
    ours, theirs = _held(found), _held(expected)
    return float((ours & theirs).sum() / theirs.sum())


def _held(cache: kv.KVCache) -> np.ndarray:
    """[L, B, K, T] which tokens of the prompt a cache holds."""
    layers = []
    for layer in cache.layers:
        held = np.zeros((*layer.index.shape[:2], TOKENS), bool)
        row, head, slot = np.nonzero(layer.valid)
        held[row, head, layer.index[row, head, slot]] = True
        layers.append(held)
    return np.stack(layers)
