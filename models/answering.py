"""Questions about clips: `encode` makes a clip a value, `answer` asks about it.

model = models.load("smolav")
clip = models.encode(model, "clip.mp4")
first = models.answer(model, clip, "What is shown second?", policy=kv.SnapKV(budget=0.2))
second = models.answer(model, clip, "And what is heard then?", follow_up=first)
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import acckv_jax as kv
from acckv_jax.cache import finite_rows
from acckv_jax.generate import for_decoding, reserved_slots, write
from acckv_jax.recent import recent_count
from acckv_jax.sampling import Sampler, random_key
from acckv_jax.sharding import on_host
from models.acckv_tau import TAU
from models.batching import in_bucket
from models.errors import UserError
from models.interface import AVModel, EmbeddedPrompt
from models.media.clip import Media, Progress, Span
from models.media.paths import clip_path
from models.retelling import retold

BUDGET = 0.3
"""Fraction of the prompt that is kept where no policy is given: in 4 bits about a tenth of the full cache's bytes."""

MODALITIES = (kv.Modality.TEXT, kv.Modality.VIDEO, kv.Modality.AUDIO)

Source = str | Path | Media


@dataclasses.dataclass(frozen=True)
class Prefill:
    """The beginning of a clip's prompt, read in full.

    Attributes:
        tokens: how many tokens of the prompt it holds.
        scored: their keys and values, and the statistics that policies prune by.
        policies: those whose statistics they are.
    """

    tokens: int
    scored: kv.Scored
    policies: tuple[kv.CachePolicy, ...]

    def serves(self, policy: kv.CachePolicy) -> bool:
        """Whether there are all statistics that the policy reads."""
        known = {*self.scored.queries, *self.scored.inputs[0]}
        recent = recent_count(self.scored.cache.stacks[0])
        enough = policy.window <= self.scored.window and policy.recent_queries <= recent
        return enough and known >= {*policy.queries, *policy.needs}


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedClip:
    """One or several clips, as a model reads them before a question.

    Attributes:
        model: the model.
        prompt: all that precedes the question.
        notes: sentences about damage that was skipped.
        prefills: the last prefill, for the questions to come; None where each question is read in one pass.
    """

    model: AVModel
    prompt: EmbeddedPrompt
    notes: tuple[str, ...] = ()
    prefills: list[Prefill] | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """An answer, and what it was made with.

    Attributes:
        text: the answer.
        token_ids: the same as generated, with the stop token if there is one.
        question: as asked.
        policy: how the cache was pruned.
        prompt_tokens: by modality, tokens that were read for it: of the whole prompt, or of a follow-up those appended.
        kept: per layer, slots by modality before the answer, averaged over KV heads.
        cache_bytes: allocated before the answer, after pruning.
        full_cache_bytes: K and V that would be allocated for the prompt without pruning. (Both are larger where a clip
            and its questions are read apart, since each is padded.)
        state: where the conversation stands, for `follow_up`.
    """

    text: str
    token_ids: tuple[int, ...]
    question: str
    policy: kv.CachePolicy
    prompt_tokens: dict[str, int]
    kept: list[dict[str, float]]
    cache_bytes: kv.CacheBytes
    full_cache_bytes: int
    state: kv.DecodeState = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Reading:
    """A question's prompt that was read and pruned.

    Attributes:
        question: as asked.
        prompt: what was read.
        policy: how the cache was pruned.
        logits: of its last token [1, V].
        cache: with slots for the answer.
        full_slots: slots per layer that the cache would have without pruning.
    """

    question: str
    prompt: EmbeddedPrompt
    policy: kv.CachePolicy
    logits: jax.Array
    cache: kv.KVCache
    full_slots: int


def encode(
    model: AVModel,
    clip: Source | Sequence[Source],
    *,
    layout: str | None = None,
    reuse: bool = True,
    span: Span | None = None,
    progress: Progress | None = None,
) -> EncodedClip:
    """Decodes and encodes a clip, so that questions can be asked about it.

    Args:
        model: from `models.load`.
        clip: a file, a picture, or a folder of pictures; decoded media; or several of them, in the order in which they
            are shown.
        layout: one of `model.layouts`; by default the first.
        reuse: whether the clip is read once for all questions, its whole cache kept beside theirs. Without it each
            question is read together with the clip in one pass, which prunes every layer before the next one runs.
        span: seconds (start, end): the part of each file that is read, as if it were the whole clip.
        progress: called with the seconds decoded so far, and the seconds in all.

    Raises:
        UserError: if a clip cannot be read, the model does not take it, or there is no such layout.
    """
    several = [clip] if isinstance(clip, Source) else list(clip)
    media = [one if isinstance(one, Media) else model.load_media(clip_path(one), progress, span) for one in several]
    prompt = model.encode_media(media, layout or model.layouts[0])
    return EncodedClip(model, prompt, tuple(note for one in media for note in one.notes), [] if reuse else None)


def answer(
    model: AVModel,
    clip: EncodedClip | Source | Sequence[Source] | None,
    question: str,
    *,
    policy: kv.CachePolicy | None = None,
    max_new_tokens: int = 64,
    sampler: Sampler = kv.greedy,
    seed: int = 0,
    layout: str | None = None,
    stream: Callable[[str], None] | None = None,
    follow_up: Answer | None = None,
) -> Answer:
    """Answers a question about a clip.

    Questions about an encoded clip share its prefill, and each gets the answer that it gets alone.

    Args:
        model: from `models.load`.
        clip: from `encode`; or anything that `encode` takes, which is then read in one pass. Not read with `follow_up`.
        question: the question.
        policy: how to prune the cache; by default AccKV's preset `plus` at a fifth of the prompt.
        max_new_tokens: longest answer.
        sampler: from logits to tokens, such as `acckv_jax.Sample(temperature=0.7)`.
        seed: of the sampler.
        layout: of a clip that is not encoded yet, see `encode`.
        stream: called with each piece of the answer's text as it is generated.
        follow_up: the answer that this question follows. The conversation goes on from its pruned cache, under its
            policy; several questions may follow one answer, each without the others.

    Raises:
        UserError: on a mistake in the arguments or the clip, a prompt that is too long, a budget that is too small, or
            weights that compute no numbers.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    checked_key(seed)
    if follow_up is not None:
        if policy not in (None, follow_up.policy):
            raise UserError("A follow-up question uses the policy of the answer before; leave the policy out.")
        reading = read_follow_up(model, follow_up, question, max_new_tokens)
    else:
        policy = policy or default_policy(model)
        if not isinstance(clip, EncodedClip):
            if clip is None:
                raise UserError("There is no clip to ask about; give one, or the answer that this question follows.")
            clip = encode(model, clip, layout=layout, reuse=False)
        elif layout is not None:
            raise UserError("The clip is encoded already; choose its layout when it is encoded.")
        reading = _read(model, clip, question, policy, max_new_tokens)
    for piece in write_answer(model, reading, max_new_tokens, sampler, seed):
        if isinstance(piece, Answer):
            return piece
        if stream is not None:
            stream(piece)
    raise AssertionError("the last piece is the answer")


def default_policy(model: AVModel) -> kv.CachePolicy:
    """The best at a tenth of the full cache's bytes (docs/scoreboard.md)."""
    return kv.Quantized(kv.AccKV.plus(budget=BUDGET, tau=TAU[model.family]), bits=4)


def _read(model: AVModel, clip: EncodedClip, question: str, policy: kv.CachePolicy, max_new_tokens: int) -> Reading:
    prompt = question_prompt(model, clip, question, [policy], max_new_tokens)
    return read_prompt(model, clip, prompt, question, policy, max_new_tokens)


def read_prompt(
    model: AVModel,
    clip: EncodedClip,
    prompt: EmbeddedPrompt,
    question: str,
    policy: kv.CachePolicy,
    max_new_tokens: int,
) -> Reading:
    """Reads a checked prompt that begins with a clip: after the clip's own prefill, if questions share one."""
    if clip.prefills is None and not policy.second_pass:
        return read_alone(model, prompt, question, policy, max_new_tokens)
    prefills = [] if clip.prefills is None else clip.prefills
    if not prefills or not prefills[0].serves(policy):
        prefills[:] = [prefill_clip(model, clip, [policy])]
    logits, scored = score_question(model, prefills[0], prompt)
    return prune_question(scored, logits, prompt, question, policy, max_new_tokens)


def question_prompt(
    model: AVModel, clip: EncodedClip, question: str, policies: Iterable[kv.CachePolicy], max_new_tokens: int
) -> EmbeddedPrompt:
    """A clip and a question, checked.

    Raises:
        UserError: if the question is empty, the clip is of another model, the prompt is too long or a budget too small.
    """
    if clip.model is not model:
        raise UserError(f"The clip was encoded for {clip.model.name}, not for {model.name}; encode it anew.")
    prompt = clip.prompt.then(model.encode_question(question))
    check_fits(model, prompt, max_new_tokens)
    for policy in policies:
        check_policy(policy, prompt, model.decoder.num_layers)
    return prompt


def read_alone(
    model: AVModel, prompt: EmbeddedPrompt, question: str, policy: kv.CachePolicy, max_new_tokens: int
) -> Reading:
    """Reads a whole prompt in one pass, each layer pruned before the next one runs."""
    batch = in_bucket(prompt)
    slots = reserved_slots(policy, max_new_tokens)
    logits, cache = kv.jitted.prefill(
        model.decoder, model.params, **batch.arguments(), policy=policy, reserved_slots=slots
    )
    return Reading(question, prompt, policy, logits, cache, batch.prompt.modality.shape[1])


def prefill_clip(model: AVModel, clip: EncodedClip, policies: Sequence[kv.CachePolicy]) -> Prefill:
    """Reads a clip in full, but for the last tokens that a policy's window may need together with the question.

    For policies with a second pass the model then describes the clip (`models.retelling`).
    """
    tokens = max(1, len(clip.prompt) - max(policy.window for policy in policies))
    head = in_bucket(clip.prompt.split(tokens)[0])
    named = tuple(dict.fromkeys(policy.with_budget(1.0) for policy in policies))  # budgets share a program
    _, scored = kv.jitted.score(model.decoder, model.params, **head.arguments(), policies=named, complete=False)
    if any(policy.second_pass for policy in named):
        scored = retold(model, clip.prompt, tokens, scored, named)
    return Prefill(tokens, scored, named)


def score_question(model: AVModel, before: Prefill, prompt: EmbeddedPrompt) -> tuple[jax.Array, kv.Scored]:
    """Reads the rest of a prompt after the clip: logits of its last token, and the whole prompt in full."""
    rest = in_bucket(prompt.split(before.tokens)[1])
    more = {"policies": before.policies, "before": before.scored}
    return kv.jitted.score(model.decoder, model.params, **rest.arguments(), **more)


def prune_question(
    scored: kv.Scored,
    logits: jax.Array,
    prompt: EmbeddedPrompt,
    question: str,
    policy: kv.CachePolicy,
    max_new_tokens: int,
) -> Reading:
    """Prunes a prompt that was read in full."""
    cache = kv.prune(scored, policy, reserved_slots=reserved_slots(policy, max_new_tokens))
    return Reading(question, prompt, policy, logits, cache, scored.cache.stacks[0].slots)


def read_follow_up(model: AVModel, before: Answer, question: str, max_new_tokens: int) -> Reading:
    """Appends a question to the cache that an answer left, after what of the answer is not in it yet.

    Raises:
        UserError: if the question is empty, or the conversation becomes too long.
    """
    state, policy = before.state, before.policy
    prompt = model.encode_next_question([int(on_host(state.token)[0])], question)
    check_fits(model, prompt, max_new_tokens, earlier=int(on_host(state.cache.length)[0]))
    batch = in_bucket(prompt)
    slots = reserved_slots(policy, max_new_tokens)
    logits, cache = kv.jitted.extend(
        model.decoder, model.params, **batch.arguments(), cache=state.cache, policy=policy, reserved_slots=slots
    )
    full = before.full_cache_bytes // _slot_bytes(cache) + batch.prompt.modality.shape[1]
    return Reading(question, prompt, policy, logits, cache, full)


def write_answer(
    model: AVModel, reading: Reading, max_new_tokens: int, sampler: Sampler = kv.greedy, seed: int = 0
) -> Iterator[str | Answer]:
    """Decodes an answer.

    Yields:
        Its text in pieces, and last the `Answer`.

    Raises:
        UserError: if the model computes values that are not finite.
    """
    cache, policy = reading.cache, reading.policy
    check_finite(model, reading.logits, cache)
    size, kept = kv.cache_bytes(cache), kv.kept_counts(cache)
    full_bytes = _slot_bytes(cache) * reading.full_slots
    more: dict[str, Any] = {"sampler": sampler, "stop_token_ids": model.stop_token_ids}
    own = for_decoding(model.decoder, cache)
    start = state = kv.start_decoding(reading.logits, own, checked_key(seed), **more)
    tokens, shown = [], ""
    for made, number, state in write(model.decoder, model.params, start, policy, max_new_tokens, **more):  # noqa: B007
        tokens += made[0, : int(number[0])].tolist()
        text = model.detokenize(tokens)
        if not text.endswith("\ufffd"):  # half a character: wait for the rest
            yield text[len(shown) :]
            shown = text
    check_finite(model, reading.logits, state.cache)
    text = model.detokenize(tokens)
    yield text[len(shown) :]
    yield Answer(
        text=text.strip(),
        token_ids=tuple(tokens),
        question=reading.question,
        policy=policy,
        prompt_tokens={m.name.lower(): reading.prompt.count(m) for m in MODALITIES},
        kept=[{m: n for m, n in layer.items() if m != "generated"} for layer in kept],
        cache_bytes=size,
        full_cache_bytes=full_bytes,
        state=state,
    )


def check_fits(model: AVModel, prompt: EmbeddedPrompt, new_tokens: int, *, earlier: int = 0) -> None:
    """Checks a prompt against the model's context.

    Args:
        model: the model.
        prompt: what is to be read.
        new_tokens: longest answer.
        earlier: tokens of the conversation before the prompt.

    Raises:
        UserError: saying how to shorten it.
    """
    tokens = earlier + len(prompt)
    over = tokens + new_tokens - model.max_context
    if over > 0:
        media = len(prompt) - prompt.count(kv.Modality.TEXT)
        share = max(0, 100 * (media - over) // max(media, 1))
        ways = [f"cut the clip to about {share} % of its length"] if share else []
        if new_tokens > over:
            ways.append(f"ask for at most {new_tokens - over} new tokens")
        raise UserError(
            f"The prompt has {tokens} tokens and the answer up to {new_tokens}, but {model.name} reads at most "
            f"{model.max_context}: {' or '.join(ways or ['ask a shorter question'])}."
        )


def check_policy(policy: kv.CachePolicy, prompt: EmbeddedPrompt, num_layers: int) -> None:
    """Checks a policy against a decoder's layers, and its budget against a prompt.

    Raises:
        UserError: if it is made for another number of layers, or the budget is too small.
    """
    try:
        policy.check_layers(num_layers)
        policy.check(kv.count_tokens(kv.make_prompt(prompt.modality[None])))
    except ValueError as error:
        raise UserError(f"{type(policy).__name__}: {error}") from error


def checked_key(seed: int) -> jax.Array:
    """The random key of a seed.

    Raises:
        UserError: if the seed is negative or too large.
    """
    try:
        return random_key(seed)
    except ValueError as error:
        raise UserError(f"{error}") from error


def check_finite(model: AVModel, logits: jax.Array, cache: kv.KVCache) -> None:
    """Checks that the model computed numbers.

    Raises:
        UserError: if not.
    """
    if not (np.isfinite(on_host(logits).astype(np.float32)).all() and finite_rows(cache).all()):
        raise UserError(not_finite(model))


def not_finite(model: AVModel) -> str:
    """What is wrong with a model that does not compute numbers."""
    return (
        f"{model.name} computes values that are not finite (NaN or infinite): its weights are damaged, or too large "
        "for their type; copy the checkpoint again."
    )


def _slot_bytes(cache: kv.KVCache) -> int:
    """Bytes of K and V per slot, over all layers."""
    keys = [jax.eval_shape(lambda layer: layer.keys[..., :1, :], layer) for layer in cache.stacks]
    return sum(2 * x.size * x.dtype.itemsize for x in keys)
