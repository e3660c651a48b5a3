"""Measures what a cache policy costs and saves: ``python -m eval.profile [options]``.

For a random Qwen2 or for SmolLM2: prefill, column statistics, pruning, decoding, live bytes, compiled memory, and how
near decoding comes to the machine's measured bandwidth. Times are wall-clock seconds after a warm-up run.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import acckv_jax
from acckv_jax import CachePolicy, Modality
from eval.roofline import measured_bandwidth, step_bytes
from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.interface import Params, create, define
from models.smollm2 import load_smollm2
from models.step import DecoderStep

TEXT = 64
"""Text tokens of the synthetic prompt, half before and half after the media."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures prefill, statistics, pruning and decoding per policy and budget."""

    model: Literal["qwen2", "smollm2"] = "qwen2"
    """qwen2: random, 8 layers, hidden 512, 8/4 heads of 64; smollm2: the pretrained 135M."""
    context: int = 4096
    """Prompt tokens."""
    budgets: tuple[float, ...] = (0.5, 0.2)
    """Fractions of the prompt to keep."""
    policies: tuple[str, ...] = tuple(acckv_jax.POLICIES)
    """Policies to measure; full is measured first in any case."""
    steps: int = 64
    """Decode steps to time."""
    repeats: int = 3
    """Runs of which the fastest counts."""
    one_core: bool = False
    """Use one processor core only."""
    json: bool = False
    """Print one JSON object per row instead of the table."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy at one budget.

    Attributes:
        policy: its name.
        budget: fraction of the prompt kept.
        prefill_seconds: prompt with the policy's column sums, everything kept.
        statistics_share: what the sums add, as a share of the prefill without any.
        prune_seconds: pruning all layers.
        prune_share: of the prefill without sums.
        decode_ms: milliseconds per decoded token.
        decode_ratio: to the full cache.
        roofline: least possible time by measured bandwidth over measured time.
        cache_bytes: live K and V of the prompt.
        metadata_bytes: live bytes of the rest.
        prefill_temp_bytes: scratch memory of the compiled prefill that prunes layer by layer.
    """

    policy: str
    budget: float
    prefill_seconds: float
    statistics_share: float
    prune_seconds: float
    prune_share: float
    decode_ms: float
    decode_ratio: float
    roofline: float
    cache_bytes: int
    metadata_bytes: int
    prefill_temp_bytes: int


def random_qwen2() -> tuple[DecoderConfig, nnx.GraphDef, Params]:
    """The random Qwen2 that rivals were measured with."""
    config = DecoderConfig(
        vocab_size=2048,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1024,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    return config, *create(lambda: Decoder(config, rngs=nnx.Rngs(0)))


def smollm2() -> tuple[DecoderConfig, nnx.GraphDef, Params]:
    """SmolLM2-135M."""
    config, params = load_smollm2()
    graph, _ = define(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    return config, graph, params


MODELS: dict[str, Callable[[], tuple[DecoderConfig, nnx.GraphDef, Params]]] = {
    "qwen2": random_qwen2,
    "smollm2": smollm2,
}


def modalities(tokens: int) -> np.ndarray:
    """[1, tokens]: text, then seconds of 16 video and 10 audio tokens, then text."""
    body = np.resize(np.repeat([Modality.VIDEO, Modality.AUDIO], [16, 10]), max(0, tokens - TEXT))
    return np.concatenate([np.zeros(TEXT // 2), body, np.zeros(TEXT // 2)]).astype(np.int8)[None, :tokens]


def fastest(run: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The result of `run`, and the seconds of its fastest run after a warm-up."""
    result, best = jax.block_until_ready(run()), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        best = min(best, time.perf_counter() - start)
    return result, best


def measure(options: Options) -> Iterator[Row]:
    """Measures full, then every other policy at every budget."""
    config, graph, params = MODELS[options.model]()
    if options.context + options.steps > config.max_position_embeddings or options.context <= TEXT:
        raise UserError(
            f"--context must lie between {TEXT + 1} and {config.max_position_embeddings - options.steps} tokens for "
            f"{options.model}, not {options.context}."
        )
    params, layers = jax.device_put(params), config.num_hidden_layers
    step, bandwidth = DecoderStep(graph), measured_bandwidth()
    prompt = acckv_jax.make_prompt(modalities(options.context))
    tokens = jax.random.randint(jax.random.key(0), (1, options.context), 0, config.vocab_size)
    unknown = [name for name in options.policies if name not in acckv_jax.POLICIES]
    if unknown:
        raise UserError(f"Unknown policy {unknown[0]!r}; choose from {', '.join(acckv_jax.POLICIES)}.")
    if bad := [b for b in options.budgets if not 0 < b <= 1]:
        raise UserError(f"Budget {bad[0]:g} is no fraction of the prompt; give decimals above 0 and at most 1.")
    plain = ratio = None
    for name in ("full", *(p for p in options.policies if p != "full")):
        first = acckv_jax.make_policy(name)
        scoring = jax.jit(functools.partial(acckv_jax.score, step, policies=(first,), layers=layers))
        (logits, scored), seconds = fastest(lambda run=scoring: run(params, tokens, prompt), options.repeats)
        plain = plain or seconds
        for budget in (1.0,) if name == "full" else options.budgets:
            policy = acckv_jax.make_policy(name, budget=budget)
            room = policy.decode_room(options.steps)
            cache, pruning = fastest(
                lambda s=scored, p=policy, r=room: acckv_jax.prune(s, 0, p, room=r), options.repeats
            )
            used = acckv_jax.cache_bytes(cache)
            decoding = decode_seconds(step, params, logits, cache, policy, options)
            ratio = ratio or decoding
            whole = jax.jit(functools.partial(acckv_jax.prefill, step, policy=policy, layers=layers, room=room))
            memory: Any = whole.lower(params, tokens, prompt).compile().memory_analysis()
            yield Row(
                policy=name,
                budget=budget,
                prefill_seconds=seconds,
                statistics_share=seconds / plain - 1,
                prune_seconds=pruning,
                prune_share=pruning / plain,
                decode_ms=decoding * 1e3,
                decode_ratio=decoding / ratio,
                roofline=step_bytes(params, cache) / bandwidth / decoding,
                cache_bytes=used.prompt,
                metadata_bytes=used.metadata,
                prefill_temp_bytes=memory.temp_size_in_bytes,
            )


def decode_seconds(
    step: DecoderStep, params: Params, logits: jax.Array, cache: Any, policy: CachePolicy, options: Options
) -> float:
    """Seconds per decode step; the loop is given a fresh copy of the cache each time, since it is donated."""
    loop = jax.jit(
        functools.partial(acckv_jax.decode, step, policy=policy.while_decoding(), steps=options.steps),
        donate_argnames="state",
    )
    best = float("inf")
    for _ in range(options.repeats + 1):
        state = acckv_jax.start_decoding(logits, jax.tree.map(jnp.copy, cache), jax.random.key(0))
        jax.block_until_ready(state)
        start = time.perf_counter()
        jax.block_until_ready(loop(params, state=state))
        best = min(best, time.perf_counter() - start)
    return best / options.steps


def table(rows: Iterator[Row], options: Options) -> Table:
    """The rows for people."""
    shown = Table(title=f"{options.model}, {options.context} tokens, {options.steps} decode steps, batch 1")
    shown.add_column("policy")
    for name in ("budget", "prefill s", "sums", "prune ms", "", "decode ms", "ratio", "roofline", "K+V MB", "meta MB"):
        shown.add_column(name, justify="right")
    shown.add_column("prefill temp MB", justify="right")
    for row in rows:
        shown.add_row(
            row.policy,
            f"{row.budget:g}",
            f"{row.prefill_seconds:.2f}",
            f"{row.statistics_share:+.1%}",
            f"{row.prune_seconds * 1e3:.1f}",
            f"{row.prune_share:.1%}",
            f"{row.decode_ms:.2f}",
            f"{row.decode_ratio:.2f}",
            f"{row.roofline:.0%}",
            f"{row.cache_bytes / 1e6:.2f}",
            f"{row.metadata_bytes / 1e6:.2f}",
            f"{row.prefill_temp_bytes / 1e6:.1f}",
        )
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.profile", description=__doc__)
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    try:
        if options.json:
            for row in measure(options):
                print(json.dumps(dataclasses.asdict(row)), flush=True)
        else:
            Console(width=140).print(table(measure(options), options))
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
