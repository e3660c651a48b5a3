"""Answers with what they took: for `python -m eval.answer --stats` and `--compare`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

import acckv_jax as kv
from acckv_jax import CachePolicy
from acckv_jax.generate import CHUNK, for_decoding
from acckv_jax.sampling import Sampler
from eval.perf.roofline import step_bytes
from eval.perf.timing import fastest
from models.answering import (
    Answer,
    EncodedClip,
    Prefill,
    Reading,
    prefill_clip,
    prune_question,
    question_prompt,
    read_alone,
    score_question,
    write_answer,
)
from models.interface import AVModel

Found = TypeVar("Found")
Report = Callable[[str], None]
TIMED_STEPS = 16  # decode steps that are timed: fewer than one program takes, which is told as a number, not a shape


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long an answer took, compiling not included.

    Attributes:
        prefill_seconds: running the prompt once, pruning not included; shared by questions and policies.
        prune_seconds: pruning alone (0 where layers are pruned in the prefill).
        decode_tokens_per_second: over `TIMED_STEPS` steps.
        roofline: least possible time of a decode step, by measured bandwidth, over its measured time.
    """

    prefill_seconds: float
    prune_seconds: float
    decode_tokens_per_second: float
    roofline: float


@dataclasses.dataclass(frozen=True)
class Answered:
    """An answer under a policy by its name, and what it took where that was asked for."""

    policy: str
    answer: Answer
    timing: Timing | None = None

    def as_dict(self, model: AVModel) -> dict[str, Any]:
        """All fields, ready for JSON."""
        found = self.answer
        return {
            "answer": found.text,
            "model": model.name,
            "policy": self.policy,
            "budget": found.policy.budget,
            "question": found.question,
            "tokens": found.prompt_tokens,
            "kept": found.kept,
            "cache_bytes": found.cache_bytes.prompt,
            "full_cache_bytes": found.full_cache_bytes,
            "decode_room_bytes": found.cache_bytes.reserved,
            "metadata_bytes": found.cache_bytes.metadata,
            **({} if self.timing is None else dataclasses.asdict(self.timing)),
        }


def measure(
    model: AVModel,
    clip: EncodedClip,
    questions: Sequence[str],
    policies: dict[str, CachePolicy],
    max_new_tokens: int,
    bandwidth: float,
    sampler: Sampler = kv.greedy,
    seed: int = 0,
    report: Report = lambda text: None,
) -> Iterator[Answered]:
    """Every question under every policy, each part of the work run a second time and timed.

    Decoding is as fast for one question as for another, so its speed is measured for the first one.

    Args:
        model: the model.
        clip: an encoded clip; its own prefill is neither used nor kept. If it has one, all questions share a prefill.
        questions: about it.
        policies: by name.
        max_new_tokens: longest answer.
        bandwidth: bytes per second that this machine reads.
        sampler: from logits to tokens.
        seed: of the sampler.
        report: called with what is done now.

    Raises:
        UserError: as `models.answer`; nothing is run before all prompts and budgets are checked.
    """
    chosen = list(policies.values())
    prompts = [question_prompt(model, clip, question, chosen, max_new_tokens) for question in questions]
    speeds, shared = dict[str, float](), dict[bool, tuple[Prefill, float]]()
    for second_pass in (False, True):  # apart, because a second pass must follow the whole clip
        alike = [policy for policy in chosen if policy.second_pass == second_pass]
        if alike and (second_pass or clip.prefills is not None):
            report("prefill of the clip, and a second pass over it" if second_pass else "prefill of the clip")
            read = functools.partial(prefill_clip, model, clip, alike)
            shared[second_pass] = _timed(read, lambda found: found.scored)
    for question, prompt in zip(questions, prompts, strict=True):
        report(f"prefill of “{question}”")
        scored_by = {
            second_pass: fastest(functools.partial(score_question, model, before, prompt), 1)
            for second_pass, (before, _) in shared.items()
        }
        for name, policy in policies.items():
            report(f"{name}: “{question}”")
            options = (prompt, question, policy, max_new_tokens)
            if policy.second_pass not in shared:
                reading, prefill_seconds = _timed(functools.partial(read_alone, model, *options), _arrays)
                prune_seconds = 0.0
            else:
                (logits, scored), seconds = scored_by[policy.second_pass]
                prune = functools.partial(prune_question, scored, logits, *options)
                reading, prune_seconds = _timed(prune, _arrays)
                prefill_seconds = shared[policy.second_pass][1] + seconds
            least = step_bytes(model.params, reading.cache) / bandwidth
            kept = None if name in speeds else jax.tree.map(jnp.copy, reading.cache)  # writing uses up the cache
            *_, found = write_answer(model, reading, max_new_tokens, sampler, seed)
            assert isinstance(found, Answer)
            if kept is not None:
                reading = dataclasses.replace(reading, cache=kept)
                speeds[name] = _tokens_per_second(model, reading, sampler, compiled=len(found.token_ids) > 1)
            rate = speeds[name]
            yield Answered(name, found, Timing(prefill_seconds, prune_seconds, rate, least * rate))


def _arrays(reading: Reading) -> tuple[jax.Array, kv.KVCache]:
    return reading.logits, reading.cache


def _timed(run: Callable[[], Found], arrays: Callable[[Found], Any]) -> tuple[Found, float]:
    """Runs something a second time, until its arrays are ready: its result and the seconds."""

    def both() -> tuple[Found, Any]:
        found = run()
        return found, arrays(found)

    (found, _), seconds = fastest(both, 1)
    return found, seconds


def _tokens_per_second(model: AVModel, reading: Reading, sampler: Sampler, *, compiled: bool) -> float:
    """Decode speed, on copies of the cache, by the program that writes the answer; no token ends it."""

    def fresh() -> tuple[kv.DecodeState]:
        cache = for_decoding(model.decoder, jax.tree.map(jnp.copy, reading.cache))
        return (kv.start_decoding(reading.logits, cache, jax.random.key(0)),)

    def run(state: kv.DecodeState) -> tuple[jax.Array, jax.Array, kv.DecodeState]:
        never = (-1,) * len(model.stop_token_ids)
        more = {"limit": jnp.int32(TIMED_STEPS), "sampler": sampler, "stop_token_ids": never}
        return kv.jitted.decode(
            model.decoder, model.params, state, reading.policy.while_decoding(), steps=CHUNK, **more
        )

    return TIMED_STEPS / fastest(run, 1, fresh, compiled=compiled)[1]
