"""Answering questions about one clip: one prefill, any number of questions and policies."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import acckv_jax
from acckv_jax import CachePolicy, KVCache, Modality
from eval.perf.roofline import step_bytes
from eval.perf.timing import fastest
from eval.policies import check_policies
from models.answering import check_fits, check_numbers
from models.batching import in_bucket
from models.interface import AVModel, EmbeddedPrompt

STREAM = 8
"""Tokens between two looks at what was generated."""
TIMED_STEPS = 24
"""Decode steps that the tokens per second are measured over; answers are too short for it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and what it cost.

    Attributes:
        answer: the text.
        model: name of the model.
        policy: name of the policy.
        budget: as given.
        question: as given.
        tokens: prompt tokens by modality.
        kept: per layer, slots by modality, averaged over KV heads.
        cache_bytes: K and V allocated for the prompt after pruning.
        full_cache_bytes: the same without pruning. (Both are larger where a clip and its questions are run apart, since
            each is padded.)
        decode_room_bytes: K and V allocated for the answer.
        metadata_bytes: everything else in the cache.
        prefill_seconds: running the prompt once, pruning not included; shared by questions and policies.
        prune_seconds: pruning alone (0 where layers are pruned in the prefill).
        decode_tokens_per_second: over TIMED_STEPS steps.
        roofline: least possible time of a decode step, by measured bandwidth, over its measured time.
    """

    answer: str
    model: str
    policy: str
    budget: float | int
    question: str
    tokens: dict[str, int]
    kept: list[dict[str, float]]
    cache_bytes: int
    full_cache_bytes: int
    decode_room_bytes: int
    metadata_bytes: int
    prefill_seconds: float
    prune_seconds: float
    decode_tokens_per_second: float
    roofline: float


Report = Callable[[str], None]


def timed(function: Any, **arguments: Any) -> tuple[Any, float]:
    """Runs a jitted function twice, of which the first compiles: its result, and the seconds of the second run."""
    return fastest(functools.partial(function, **arguments), 1)


def answer_one(
    model: AVModel,
    prefix: EmbeddedPrompt,
    question: str,
    policy: tuple[str, CachePolicy],
    new_tokens: int,
    bandwidth: float,
    report: Report = lambda text: None,
) -> Iterator[str | Answer]:
    """One question under one policy, each layer pruned before the next one runs.

    Yields:
        The answer's text in pieces as it is generated, and last the `Answer`.
    """
    name, chosen = policy
    prompt = prefix.then(model.encode_question(question))
    check_fits(model, prompt, new_tokens)
    check_policies({name: chosen}, prompt.modality)
    batch = in_bucket(prompt)
    report("prefill")
    (logits, cache), seconds = timed(
        acckv_jax.jitted.prefill,
        params=model.params,
        **batch.arguments(),
        decoder=model.decoder,
        policy=chosen,
        reserved_slots=_reserved(chosen, new_tokens),
    )
    asked = Asked(prompt, question, batch.prompt.modality.shape[1], seconds, 0.0)
    yield from _generate(model, asked, (name, chosen), logits, cache, new_tokens, bandwidth)


def answer_all(
    model: AVModel,
    prefix: EmbeddedPrompt,
    questions: Sequence[str],
    policies: dict[str, CachePolicy],
    new_tokens: int,
    bandwidth: float,
    report: Report = lambda text: None,
) -> Iterator[Answer]:
    """Every question under every policy, over one prefill of the clip.

    The last rows that a policy's window needs are run again with each question, so that each answer is what the
    question gives alone.
    """
    prompts = [prefix.then(model.encode_question(question)) for question in questions]
    for prompt in prompts:
        check_fits(model, prompt, new_tokens)
        check_policies(policies, prompt.modality)
    window = max(policy.window for policy in policies.values())
    shared_tokens = max(1, len(prefix) - window)
    shared = {"params": model.params, "decoder": model.decoder, "policies": tuple(policies.values())}
    report("prefill of the clip")
    head = in_bucket(prefix.split(shared_tokens)[0])
    (_, clip), clip_seconds = timed(acckv_jax.jitted.score, **head.arguments(), complete=False, **shared)
    for question, prompt in zip(questions, prompts, strict=True):
        tail = in_bucket(prompt.split(shared_tokens)[1])
        report(f"prefill of “{question}”")
        (logits, scored), seconds = timed(acckv_jax.jitted.score, **tail.arguments(), before=clip, **shared)
        for name, policy in policies.items():
            report(f"{name}: “{question}”")
            prune = functools.partial(acckv_jax.prune, scored, policy, reserved_slots=_reserved(policy, new_tokens))
            cache, prune_seconds = fastest(prune, 1)
            slots = scored.cache.layers[0].slots
            asked = Asked(prompt, question, slots, clip_seconds + seconds, prune_seconds)
            pieces = _generate(model, asked, (name, policy), logits, cache, new_tokens, bandwidth)
            yield from (piece for piece in pieces if isinstance(piece, Answer))


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prompt that was run: its tokens, the slots of its bucket, and what running it took."""

    prompt: EmbeddedPrompt
    question: str
    slots: int
    prefill_seconds: float
    prune_seconds: float


def _reserved(policy: CachePolicy, new_tokens: int) -> int:
    """Decode slots for a whole number of streamed pieces."""
    return policy.reserved_slots(-(-max(new_tokens, TIMED_STEPS) // STREAM) * STREAM)


def _generate(
    model: AVModel,
    asked: Asked,
    policy: tuple[str, CachePolicy],
    logits: jax.Array,
    cache: KVCache,
    new_tokens: int,
    bandwidth: float,
) -> Iterator[str | Answer]:
    name, chosen = policy
    check_numbers(model, logits, cache)
    used, kept = acckv_jax.cache_bytes(cache), acckv_jax.kept_counts(cache)
    slot_bytes = sum(2 * layer.keys[:, :, :1].nbytes for layer in cache.layers)
    least = step_bytes(model.params, cache) / bandwidth
    spare = jax.tree.map(jnp.copy, cache)
    state = acckv_jax.start_decoding(logits, cache, jax.random.key(0), stop_token_ids=model.stop_token_ids)
    options = {"decoder": model.decoder, "policy": chosen.while_decoding()}
    tokens, shown = [int(state.token[0])], ""
    while True:
        text = model.detokenize(tokens[:new_tokens])
        finished = len(tokens) >= new_tokens or not bool(state.active[0])
        if finished or not text.endswith("\ufffd"):  # half a character: wait for the rest
            yield text[len(shown) :]
            shown = text
        if finished:
            break
        made, number, state = acckv_jax.jitted.decode(
            params=model.params, state=state, steps=STREAM, stop_token_ids=model.stop_token_ids, **options
        )
        tokens += np.asarray(made)[0, : int(number)].tolist()
        check_numbers(model, logits, state.cache)
    rate = _tokens_per_second(model, options, logits, spare)
    yield Answer(
        answer=shown.strip(),
        model=model.name,
        policy=name,
        budget=chosen.budget,
        question=asked.question,
        tokens={m.name.lower(): asked.prompt.count(m) for m in (Modality.TEXT, Modality.VIDEO, Modality.AUDIO)},
        kept=[{m: n for m, n in layer.items() if m != "generated"} for layer in kept],
        cache_bytes=used.prompt,
        full_cache_bytes=slot_bytes * asked.slots,
        decode_room_bytes=used.reserved,
        metadata_bytes=used.metadata,
        prefill_seconds=asked.prefill_seconds,
        prune_seconds=asked.prune_seconds,
        decode_tokens_per_second=rate,
        roofline=least * rate,
    )


def _tokens_per_second(model: AVModel, options: dict[str, Any], logits: jax.Array, cache: KVCache) -> float:
    """Decode speed."""

    def fresh() -> tuple[acckv_jax.DecodeState]:
        return (acckv_jax.start_decoding(logits, jax.tree.map(jnp.copy, cache), jax.random.key(0)),)

    def run(state: acckv_jax.DecodeState) -> tuple[jax.Array, jax.Array, acckv_jax.DecodeState]:
        return acckv_jax.jitted.decode(params=model.params, state=state, steps=TIMED_STEPS, **options)

    return TIMED_STEPS / fastest(run, 1, fresh)[1]
