"""The table of policies under contract, and the one episode of prefill, decoding and second question that all run.

Every policy sees the same shapes, so an episode is compiled once per policy (and kind of mesh); variants of the inputs
run the same program.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

import acckv_jax as kv
from acckv_jax.sharding import ShardingRules, head_axis, mesh_spec
from tests.acckv_jax.foreign_llama import Llama

ROWS, BUCKET, STEPS, QUESTION = 4, 96, 6, 8
LENGTHS = np.array([96, 71, 64, 57])
QUESTIONS = np.array([8, 5, 1, 8])
MODEL = Llama(vocab=128)
GARBAGE = MODEL.vocab - 1
"""The token whose embedding is NaN."""


def decoder_of(model: Llama) -> kv.Decoder:
    """The model as the library takes it."""
    return kv.Decoder(model, model.layers)


DECODER = decoder_of(MODEL)

CONTRACT: dict[str, kv.CachePolicy] = {
    "full": kv.make_policy("full"),
    "random": kv.make_policy("random", budget=0.3, seed=3),
    "streaming_llm": kv.StreamingLLM(budget=0.3, evict_every=1),
    "streaming_llm_every_4": kv.StreamingLLM(budget=20, evict_every=4),
    "h2o": kv.H2O(budget=0.3, evict_every=1),
    "h2o_prefill_only": kv.H2O(budget=0.3, evict_every=0, recent=0.25),
    "h2o_every_4": kv.EvictEvery(kv.H2O(budget=20), 4),
    "snapkv": kv.make_policy("snapkv", budget=0.3, window_size=8),
    "acckv": kv.make_policy("acckv", budget=0.4, tau=0.1),
    "acckv_evict_only": kv.make_policy("acckv", budget=0.4, merge="none", gate="none"),
    "acckv_summary": kv.make_policy("acckv", budget=0.4, merge="summary", gate="quantile", log_multiplicity=True),
    "acckv_every_2": kv.AccKV(budget=30, merge="none", gate="quantile", recent=3, evict_every=2),
    "acckv_plus": kv.make_policy("acckv_plus", budget=0.4),
    "acckv_plus_every_4": kv.AccKV.plus(budget=0.4, evict_every=4),
    "omni_fit": kv.make_policy("omni_fit", budget=0.4),
    "knorm": kv.Knorm(budget=0.3),
    "keydiff": kv.KeyDiff(budget=0.3),
    "keydiff_every_4": kv.EvictEvery(kv.KeyDiff(budget=20), 4),
    "tova": kv.TOVA(budget=0.3),
    "mix_kv": kv.MixKV(budget=0.3, window_size=8),
    "look_m": kv.LookM(budget=0.4),
    "look_m_weighted": kv.LookM(budget=30, merge="weighted", recent=0.25),
    "fastv": kv.FastV(budget=0.4, filter_layer=1),
    "pyramid_kv": kv.PyramidKV(budget=0.4, window_size=4, beta=5),
    "expected_attention": kv.ExpectedAttention(budget=0.3, future_positions=32),
    "r_kv": kv.RKV(budget=0.3, evict_every=4, window_size=4, kernel_size=3),
    "kvzip": kv.KVzip(budget=0.3),
    "vl_cache": kv.VLCache(budget=0.3),
    "mada_kv": kv.MadaKV(budget=0.3, window_size=8),
    "omni_mem": kv.OmniMem(budget=0.3),
    "protected_snapkv": kv.Protected(kv.SnapKV(budget=0.3, window_size=8), first=3, last=5),
    "protected_acckv_every_2": kv.Protected(
        kv.AccKV(budget=0.4, merge="none", gate="none", recent=3, evict_every=2), first=5, last=2
    ),
    "protected_look_m": kv.Protected(kv.LookM(budget=0.4), first=5, last=2),
    "protected_fastv": kv.Protected(kv.FastV(budget=0.4, filter_layer=1), first=5, last=2),
    "per_layer_acckv_plus": kv.PerLayer(kv.AccKV.plus(budget=0.4), shares=(1.25, 0.75)),
    "per_layer_h2o_every_4": kv.PerLayer(kv.H2O(budget=0.3, evict_every=4), shares=(0.5, 1.5)),
    "quantized_4_snapkv": kv.Quantized(kv.SnapKV(budget=0.3, window_size=8), bits=4),
    "quantized_acckv": kv.Quantized(kv.AccKV(budget=0.4, tau=0.1)),
    "quantized_h2o_every_4": kv.Quantized(kv.H2O(budget=0.3, evict_every=4)),
    "ada_kv_snapkv": kv.AdaKV(kv.SnapKV(budget=0.3, window_size=8)),
    "ada_kv_acckv_plus": kv.AdaKV(kv.AccKV.plus(budget=0.4), most=1.5),
    "ada_kv_h2o_every_4": kv.AdaKV(kv.H2O(budget=0.3, evict_every=4), most=1.5),
    "critical_kv_snapkv": kv.CriticalKV(kv.SnapKV(budget=0.3, window_size=8)),
    "critical_kv_ada_kv_h2o": kv.CriticalKV(kv.AdaKV(kv.H2O(budget=0.3, evict_every=0))),
    "smoothed_h2o_every_4": kv.Smoothed(kv.H2O(budget=0.3, evict_every=4)),
    "smoothed_snapkv": kv.Smoothed(kv.SnapKV(budget=0.3, window_size=8)),
    "clie_snapkv": kv.CLIE(kv.SnapKV(budget=0.3, window_size=8), scored_layers=1),
    "clie_acckv_plus_every_4": kv.CLIE(kv.AccKV.plus(budget=0.4, evict_every=4), scored_layers=1),
}
"""Every policy by its own name, every wrapper, and further options of both."""

ONE_OF_EACH = (
    *kv.POLICIES,
    *{type(case): name for name, case in reversed(CONTRACT.items()) if isinstance(case, kv.Wrapper)}.values(),
)
"""Every policy, and the first case of every wrapper: quick where values are compared."""


def pyramid(policy: kv.PyramidKV, length: int, layer: int) -> int:
    """A row's slots in a layer; neither end of the line reaches a bound in the table."""
    last = max(policy.budget * length / policy.beta, policy.window_size)
    first = 2 * policy.budget * length - last
    assert policy.window_size <= last <= first <= length - policy.window_size
    return round(first + (last - first) * layer / (MODEL.layers - 1))


def allowed(policy: kv.CachePolicy, length: np.ndarray, layer: int) -> np.ndarray:
    """Slots that rows of these lengths may hold in a layer, mean over heads."""
    share = 1.0
    while isinstance(policy, kv.Wrapper):
        share *= policy.shares[layer] if isinstance(policy, kv.PerLayer) else 1.0
        policy = policy.inner
    if isinstance(policy, kv.Full) or (isinstance(policy, kv.FastV) and layer < policy.filter_layer):
        return length
    if isinstance(policy, kv.PyramidKV):
        return np.array([pyramid(policy, n, layer) for n in length.tolist()])
    if isinstance(policy.budget, int):
        return np.minimum(length, round(policy.budget * share))
    return np.array([round(policy.budget * share * n) for n in length.tolist()])


class Inputs(NamedTuple):
    """Token ids and prompts of a batch: prompt [B, T], forced decode tokens [steps, B], a second question [B, Q]."""

    tokens: Any
    prompt: kv.Prompt
    forced: Any
    question: Any
    question_prompt: kv.Prompt


class Episode(NamedTuple):
    """What an episode returns; `kept[layer]` is (index, valid), [steps, B, K, S], after every decode step."""

    logits: Any
    pruned: kv.KVCache
    step_logits: Any
    kept: Any
    decoded: kv.KVCache
    question_logits: Any
    extended: kv.KVCache


def random_inputs(model: Llama = MODEL, lengths: np.ndarray = LENGTHS, questions: np.ndarray = QUESTIONS) -> Inputs:
    """A ragged batch; text, video and audio, interleaved or in blocks."""
    rng = np.random.default_rng(0)
    rows = len(lengths)
    modality = np.zeros((rows, BUCKET), int)
    for row, length in enumerate(lengths):
        media = np.arange(3, length - 4)
        modality[row, media] = 1 + (media % 7 > 4 if row % 2 else media > length // 2)

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(0, model.vocab - 1, shape).astype(np.int32)

    # No token twice in a prompt: key norms would be equal but for rounding, and a policy by norm undecided.
    tokens = np.stack([rng.permutation(model.vocab - 1)[:BUCKET] for _ in range(rows)]).astype(np.int32)
    return Inputs(
        tokens,
        kv.make_prompt(modality, lengths),
        draw(STEPS, rows),
        draw(rows, QUESTION),
        kv.make_prompt(np.zeros((rows, QUESTION), int), questions),
    )


def params_of(model: Llama = MODEL) -> dict:
    """Random parameters in which `GARBAGE` is embedded as NaN."""
    params = model.init(jax.random.key(0))
    return params | {"embed": params["embed"].at[model.vocab - 1].set(jnp.nan)}


def read_prompt(
    decoder: kv.Decoder, params: dict, inputs: Inputs, policy: kv.CachePolicy, reserved_slots: int
) -> tuple[jax.Array, kv.KVCache]:
    """Prefill; for a policy that reads a second pass score, probe with the second question, and prune."""
    if not policy.second_pass:
        return kv.prefill(decoder, params, inputs.tokens, inputs.prompt, policy, reserved_slots=reserved_slots)
    logits, scored = kv.score(decoder, params, inputs.tokens, inputs.prompt, (policy,))
    scored = kv.probe(decoder, params, inputs.question, inputs.question_prompt, scored, (policy,))
    return logits, kv.prune(scored, policy, reserved_slots=reserved_slots)


@functools.partial(jax.jit, static_argnames=("model", "policy"))
def run_episode(model: Llama, policy: kv.CachePolicy, params: dict, inputs: Inputs) -> Episode:
    """Prefill, `STEPS` decode steps with forced tokens, a second question."""
    decoder, reserved = decoder_of(model), policy.reserved_slots(STEPS)
    logits, pruned = read_prompt(decoder, params, inputs, policy, reserved)

    def step(cache: kv.KVCache, tokens: jax.Array) -> tuple[kv.KVCache, Any]:
        logits, cache = kv.decode_step(decoder, params, tokens, cache, policy, tokens >= 0)
        return cache, (logits, [(layer.index, layer.valid) for layer in cache.layers])

    decoded, (step_logits, kept) = jax.lax.scan(step, pruned, inputs.forced)
    question_logits, extended = kv.extend(decoder, params, inputs.question, inputs.question_prompt, decoded, policy)
    return Episode(logits, pruned, step_logits, kept, decoded, question_logits, extended)


@functools.cache
def episode(name: str) -> Episode:
    """The episode of a policy of the table on one device, as NumPy arrays."""
    return jax.device_get(run_episode(MODEL, CONTRACT[name], params_of(), random_inputs()))


@functools.partial(jax.jit, static_argnames=("model", "policies"))
def run_score(model: Llama, policies: tuple[kv.CachePolicy, ...], params: dict, inputs: Inputs):
    """Logits of the prompt, and the prompt with the sums of all `policies`."""
    logits, scored = kv.score(decoder_of(model), params, inputs.tokens, inputs.prompt, policies)
    return logits, kv.probe(decoder_of(model), params, inputs.question, inputs.question_prompt, scored, policies)


@functools.cache
def scored_by_all() -> kv.Scored:
    """The prompt with the sums of every policy of the table, in its order."""
    return run_score(MODEL, tuple(CONTRACT.values()), params_of(), random_inputs())[1]


def scored_by(name: str) -> kv.Scored:
    """The prompt with one policy's sums, inputs and recent queries."""
    scored, policy = scored_by_all(), CONTRACT[name]
    cache = scored.cache
    if not policy.recent_queries:
        layers = (dataclasses.replace(layer, recent_queries=None) for layer in cache.stacks)
        cache = dataclasses.replace(cache, stacks=tuple(layers))
    own = zip(*(scored.attention_sums(queries) for queries in policy.queries), strict=True)
    sums = tuple(own) if policy.queries else ((),) * MODEL.layers
    inputs = tuple({name: x for name, x in one.items() if name in policy.needs} for one in scored.inputs)
    return kv.Scored(cache, sums, inputs, policy.queries, policy.window, scored.complete)


def is_by_row(path: Any) -> bool:
    """Whether a leaf of a `Scored` has rows, or is a parameter of its layer."""
    return not jax.tree_util.keystr(path).endswith(("['output_weights']", "['rotary_frequencies']"))


def place_params(params: dict, model: Llama = MODEL) -> dict:
    """Parameters on the current mesh: heads and hidden units on `tensor`."""
    heads = head_axis(ShardingRules(), model.kv_heads)
    into, out = mesh_spec(None, heads), mesh_spec(heads)
    specs = {"q": into, "k": into, "v": into, "o": out, "up": mesh_spec(None, "tensor"), "down": mesh_spec("tensor")}
    specs["gate"] = specs["up"]
    layers = [{name: jax.device_put(w, specs[name]) for name, w in layer.items()} for layer in params["layers"]]
    return {n: jax.device_put(params[n], PartitionSpec()) for n in ("embed", "head")} | {"layers": layers}


def place_inputs(inputs: Inputs) -> Inputs:
    """Rows on the `data` axis of the current mesh."""

    def rows_at(axis: int, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.device_put(x, mesh_spec(*(None,) * axis, "data")), tree)

    return Inputs(*(rows_at(int(name == "forced"), x) for name, x in inputs._asdict().items()))


def place_scored(scored: kv.Scored, heads: str | None = "tensor") -> kv.Scored:
    """Rows on `data` and KV heads on `tensor`, for every leaf that has them."""

    inputs = {
        "output_weights": (heads,),
        "rotary_frequencies": (),
        "hidden_states": ("data",),
        "unrotated_q": ("data", None, heads),
    }

    def place(path: Any, x: jax.Array) -> jax.Array:
        spec = inputs.get(getattr(path[-1], "key", None), ("data", heads)[: x.ndim])
        return jax.device_put(x, mesh_spec(*spec))

    return jax.tree_util.tree_map_with_path(place, scored)
