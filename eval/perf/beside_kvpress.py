"""This library beside kvpress (NVIDIA, PyTorch) in one run: ``python -m eval.perf.beside_kvpress [options]``.

SmolLM2 with the same weights in both, the same prompts, and as many slots for each policy: which tokens are kept, what
is answered, and what prefill, pruning, decoding and the pruned cache take. Both use one core, in turns.
"""

import dataclasses
import functools
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Bool, Float, Int
from rich.console import Console

import acckv_jax as kv
from acckv_jax.budget import slots_of
from acckv_jax.generate import for_decoding
from eval.perf.pass_key import pass_key_prompt
from eval.perf.presses import PRESSES, compression_ratio, shared_policies
from eval.perf.timing import in_turns
from eval.policies import check_policies
from eval.scoreboard.kept import tokens_of
from models import command
from models.errors import UserError
from models.files import write_text
from models.layers.init import Params
from models.over_decoder import decoder_of, with_single_layers
from models.policies import build_policy
from models.smolav.smollm2 import load_smollm2
from models.text.tokenizers import load_smollm2_tokenizer

OURS, THEIRS = SIDES = ("acckv_jax", "kvpress")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares with kvpress at equal slots, and prints a table in Markdown."""

    tokens: tuple[int, ...] = (512, 2048)
    """Prompt tokens that are read and pruned; one more is held back for the pruned cache."""
    budgets: tuple[float, ...] = (0.5, 0.2, 0.1)
    """Fractions of the prompt to keep."""
    policies: tuple[str, ...] = shared_policies()
    """Policies to compare, of those that both have."""
    new_tokens: int = 16
    """Tokens of an answer."""
    repeats: int = 3
    """Runs of which the fastest counts."""
    seed: int = 0
    """Of the prompts."""
    out: Path | None = None
    """File to write the rows to, as JSON."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one side takes.

    Attributes:
        prefill_seconds: reading the prompt, pruning included.
        compress_seconds: pruning all layers by themselves; None where nothing is pruned.
        decode_ms: milliseconds per decoded token.
        cache_bytes: keys and values that the pruned cache allocates.
    """

    prefill_seconds: float
    compress_seconds: float | None
    decode_ms: float
    cache_bytes: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy at one budget, on both sides.

    Attributes:
        tokens: of the prompt.
        policy: its name here.
        budget: fraction of the prompt kept.
        agreement: share of kept slots that both keep, mean over layers and KV heads.
        least_agreement: that of the layer and head in which it is smallest.
        new_tokens: tokens of an answer.
        equal_tokens: how many of them are equal before the first that is not.
        ours: what this library takes.
        kvpress: what kvpress takes.
    """

    tokens: int
    policy: str
    budget: float
    agreement: float
    least_agreement: float
    new_tokens: int
    equal_tokens: int
    ours: Cost
    kvpress: Cost


class Run(Protocol):
    """A prompt under one policy on one side, and the answer to it; `start` makes what `decode` uses up."""

    def prefill(self) -> Any: ...
    def compress(self) -> Any: ...
    def start(self, cache: Any, /) -> tuple[Any, ...]: ...
    def decode(self, state: Any, /) -> Sequence[int]: ...
    def kept(self, cache: Any, /) -> Bool[np.ndarray, "L K T"]: ...
    def cache_bytes(self, cache: Any, /) -> int: ...


@dataclasses.dataclass(frozen=True)
class OurRun:
    """The run of this library.

    Attributes:
        decoder: the decoder.
        params: its parameters.
        ids: [T + 1] the prompt and the token that is held back.
        policy: what to keep.
        new_tokens: tokens of the answer.
        scored: the prompt in full, scored for the policy.
    """

    decoder: kv.Decoder
    params: Params
    ids: Int[np.ndarray, " T+1"]
    policy: kv.CachePolicy
    new_tokens: int
    scored: kv.Scored

    def prefill(self) -> kv.KVCache:
        tokens, prompt = text_prompt(self.ids)
        reserved = self.policy.reserved_slots(self.new_tokens)
        return kv.jitted.prefill(self.decoder, self.params, tokens, prompt, self.policy, reserved_slots=reserved)[1]

    def compress(self) -> kv.KVCache:
        return kv.prune(self.scored, self.policy, reserved_slots=self.policy.reserved_slots(self.new_tokens))

    def start(self, cache: kv.KVCache) -> tuple[kv.DecodeState]:
        own = for_decoding(self.decoder, jax.tree.map(jnp.copy, cache))
        return (kv.DecodeState(own, jnp.asarray(self.ids[-1:]), jnp.array([True]), jax.random.key(0)),)

    def decode(self, state: kv.DecodeState) -> list[int]:
        policy = self.policy.while_decoding()
        return kv.jitted.decode(self.decoder, self.params, state, policy, steps=self.new_tokens)[0][0].tolist()

    def kept(self, cache: kv.KVCache) -> Bool[np.ndarray, "L K T"]:
        return np.stack([tokens_of(layer, len(self.ids) - 1) > 0 for layer in cache.layers])

    def cache_bytes(self, cache: kv.KVCache) -> int:
        return kv.cache_bytes(cache).prompt


def text_prompt(ids: Int[np.ndarray, " T+1"]) -> tuple[jax.Array, kv.Prompt]:
    """All tokens but the last one, as the library takes them."""
    return jnp.asarray(ids[None, :-1]), kv.make_prompt(np.zeros((1, len(ids) - 1), np.int8))


def agreement(ours: Bool[np.ndarray, "L K T"], theirs: Bool[np.ndarray, "L K T"]) -> Float[np.ndarray, "L K"]:
    """Of the slots that either keeps, counted once for each side, the share of tokens that both keep."""
    return 2 * (ours & theirs).sum(-1) / (ours.sum(-1) + theirs.sum(-1))


def equal_tokens(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens two answers begin with alike."""
    return int(np.cumprod(np.equal(ours, theirs)).sum())


def compare(tokens: int, policy: str, budget: float, runs: Mapping[str, Run], repeats: int) -> Row:
    """Runs both sides (`SIDES`) in turns."""
    caches, prefill = in_turns({side: run.prefill for side, run in runs.items()}, repeats)
    compress: dict[str, float | None] = dict.fromkeys(SIDES)
    if policy != "full":
        _, seconds = in_turns({side: run.compress for side, run in runs.items()}, repeats)
        compress |= seconds
    fresh = {side: functools.partial(run.start, caches[side]) for side, run in runs.items()}
    answers, decode = in_turns({side: run.decode for side, run in runs.items()}, repeats, fresh)
    new_tokens = len(answers[OURS])
    costs = [
        Cost(prefill[side], compress[side], decode[side] / new_tokens * 1e3, runs[side].cache_bytes(caches[side]))
        for side in SIDES
    ]
    agreeing = agreement(*(runs[side].kept(caches[side]) for side in SIDES))
    least, equal = float(agreeing.min()), equal_tokens(answers[OURS], answers[THEIRS])
    return Row(tokens, policy, budget, float(agreeing.mean()), least, new_tokens, equal, *costs)


def chosen_policies(options: Options, tokens: int) -> dict[tuple[str, float], kv.CachePolicy]:
    """The policies at their budgets, as numbers of slots: kvpress rounds fractions otherwise.

    kvpress does not prune between decode steps, so none of them does.

    Raises:
        UserError: if kvpress does not have a policy, or a budget is wrong or too small.
    """
    chosen: dict[tuple[str, float], kv.CachePolicy] = {}
    for name in options.policies:
        if name not in shared_policies():
            raise UserError(f"kvpress is compared under {', '.join(shared_policies())}, not under {name!r}.")
        for budget in (1.0,) if name == "full" else options.budgets:
            slots = slots_of(build_policy(name, budget).budget, tokens)
            chosen[name, budget] = build_policy(name, slots, evict_every=0)
    labelled = {f"{name} at budget {budget:g}": policy for (name, budget), policy in chosen.items()}
    check_policies(labelled, np.zeros(tokens, np.int8))
    return chosen


def measure(options: Options) -> Iterator[Row]:
    """A row for each length, policy and budget.

    Raises:
        UserError: on any mistake in the options, or if kvpress is missing, or the weights cannot be had.
    """
    policies = {tokens: chosen_policies(options, tokens) for tokens in options.tokens}
    try:
        import kvpress  # pyright: ignore[reportMissingImports]

        from eval.perf import kvpress_runs
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} cannot be imported here; docs/beside_kvpress.md has two commands that make an environment "
            "with both libraries."
        ) from error
    kvpress_runs.use_one_thread()
    config, arrays = load_smollm2()
    longest, most = max(options.tokens) + options.new_tokens, config.max_position_embeddings
    if longest >= most:
        raise UserError(f"--tokens and --new-tokens must be fewer than {most} together, not {longest}.")
    tokenizer = load_smollm2_tokenizer()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    prompts = {tokens: pass_key_prompt(encode, tokens + 1, options.seed) for tokens in options.tokens}
    params = jax.device_put(arrays)
    model = kvpress_runs.llama(config, params)
    decoder, params = decoder_of(config), with_single_layers(params)
    for tokens, ids in prompts.items():
        _, scored = kv.jitted.score(decoder, params, *text_prompt(ids), policies=tuple(policies[tokens].values()))
        for (name, budget), policy in policies[tokens].items():
            ratio = compression_ratio(slots_of(policy.budget, tokens), tokens)
            runs: dict[str, Run] = {
                OURS: OurRun(decoder, params, ids, policy, options.new_tokens, scored),
                THEIRS: kvpress_runs.PressedRun(model, ids, PRESSES[name](kvpress, policy, ratio), options.new_tokens),
            }
            yield compare(tokens, name, budget, runs, options.repeats)


def markdown(rows: Sequence[Row]) -> str:
    """A table for each length: ours / kvpress's where there are two numbers."""
    lines: list[str] = []
    for tokens in dict.fromkeys(row.tokens for row in rows):
        lines += [
            f"### {tokens:,} tokens",
            "",
            "| policy | slots agree | least | answer | prefill s | compress ms | decode ms | cache MB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            if row.tokens == tokens:
                cells = [
                    "full" if row.policy == "full" else f"{row.policy} {row.budget:g}",
                    f"{row.agreement:.4f}",
                    f"{row.least_agreement:.3f}",
                    f"{row.equal_tokens} of {row.new_tokens}",
                    f"{row.ours.prefill_seconds:.2f} / {row.kvpress.prefill_seconds:.2f}",
                    " / ".join(_milliseconds(cost.compress_seconds) for cost in (row.ours, row.kvpress)).strip(" /"),
                    f"{row.ours.decode_ms:.1f} / {row.kvpress.decode_ms:.1f}",
                    f"{row.ours.cache_bytes / 1e6:.2f} / {row.kvpress.cache_bytes / 1e6:.2f}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.1f}"


def environment() -> dict[str, Any]:
    """What the rows depend on."""
    versions = {name: metadata.version(name) for name in ("jax", "kvpress", "torch", "transformers")}
    return {"python": platform.python_version(), **versions, "cores": os.cpu_count()}


def run(options: Options) -> None:
    """Measures, writes and prints.

    Raises:
        UserError: on any mistake in the options, or if kvpress is missing.
    """
    if not options.tokens or not options.policies or min(options.new_tokens, options.repeats) < 1:
        raise UserError("--tokens and --policies need a value each, --new-tokens and --repeats at least 1.")
    command.check_output(options.out)
    load, rows, progress = os.getloadavg()[0], list[Row](), Console(stderr=True)
    for row in measure(options):
        rows.append(row)
        progress.print(f"{row.tokens} tokens, {row.policy} {row.budget:g}: {row.agreement:.4f} of the slots agree")
        if options.out is not None:
            found = {"environment": environment() | {"load": load}, "rows": [dataclasses.asdict(row) for row in rows]}
            write_text(options.out, json.dumps(found, indent=1) + "\n")
    print(markdown(rows))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.beside_kvpress", description=__doc__)
    return command.run(lambda: run(options), keep_programs=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before any library counts the cores
    sys.exit(main())
