"""Clips in, answers out: models.encode and models.answer."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import acckv_jax as kv
from acckv_jax.generate import reserved_slots, write
from acckv_jax.sampling import Sampler
from models.acckv_tau import TAU
from models.batching import in_bucket
from models.errors import UserError
from models.interface import AVModel, EmbeddedPrompt
from models.media.clip import Media, Progress

Clip = str | Path | Media
"""A file (mp4, mkv, wav...), a picture, a folder of pictures, or what was decoded of one."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedClip:
    """A clip as a model sees and hears it: everything that precedes a question.

    It remembers the prefill of its tokens, one for each set of statistics that policies asked for, so that further
    questions run their own tokens only. A prefill takes the memory of the clip's full cache.

    Attributes:
        prompt: the embedded tokens.
        notes: sentences about what was skipped or guessed in the files.
    """

    prompt: EmbeddedPrompt
    notes: tuple[str, ...] = ()
    _prefills: dict[Any, kv.Scored] = dataclasses.field(default_factory=dict, repr=False)

    def ask(self, model: AVModel, prompt: EmbeddedPrompt, policy: kv.CachePolicy) -> tuple[jax.Array, kv.Scored]:
        """Logits and statistics of the whole prompt, which begins with this clip."""
        head = max(1, len(self.prompt) - policy.window)
        scored_for = (policy.with_budget(1.0),)
        score = {"decoder": model.decoder, "params": model.params, "policies": scored_for}
        statistics = policy.queries, policy.needs, policy.window
        if statistics not in self._prefills:
            batch = in_bucket(self.prompt.split(head)[0])
            _, self._prefills[statistics] = kv.jitted.score(**batch.arguments(), **score, complete=False)
        tail = in_bucket(prompt.split(head)[1])
        return kv.jitted.score(**tail.arguments(), **score, before=self._prefills[statistics])


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """An answer, and the cache that it leaves.

    Attributes:
        text: the answer.
        token_ids: its tokens, the stop token included.
        question: as asked.
        policy: that pruned the cache.
        prompt_tokens: tokens of the prompt by modality, of a follow-up those appended.
        kept: per layer, slots by modality after pruning, averaged over KV heads.
        cache_bytes: allocated bytes after pruning.
        full_cache_bytes: bytes of K and V without pruning.
        state: for a follow-up question; it stays as it is.
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


def encode(
    model: AVModel, clip: Clip | Sequence[Clip], *, layout: str | None = None, progress: Progress | None = None
) -> EncodedClip:
    """Reads and encodes a clip, or several that one prompt shows.

    Args:
        model: from `models.load`.
        clip: a file, a picture, a folder of pictures, decoded media; or several of them.
        layout: order of the media tokens, one of `model.layouts`; None for the model's own.
        progress: called with the seconds decoded and the seconds in all, if they are known.

    Raises:
        UserError: if a file cannot be read, the layout is unknown, or there is nothing to see or hear.
    """
    several = [clip] if isinstance(clip, Clip) else list(clip)
    media = [one if isinstance(one, Media) else model.load_media(Path(one), progress) for one in several]
    notes = tuple(note for one in media for note in one.notes)
    return EncodedClip(model.encode_media(media if len(media) != 1 else media[0], layout or model.layouts[0]), notes)


def default_policy(model: AVModel, budget: float | int = 0.2) -> kv.CachePolicy:
    """The measured best: AccKV.plus, with the gate's threshold of the model's family."""
    return kv.AccKV.plus(budget=budget, tau=TAU[model.family])


def answer(
    model: AVModel,
    clip: EncodedClip | EmbeddedPrompt | Clip | Sequence[Clip],
    question: str,
    *,
    policy: kv.CachePolicy | None = None,
    max_new_tokens: int = 64,
    sampler: Sampler = kv.greedy,
    seed: int = 0,
    stream: Callable[[str], None] | None = None,
    follow_up: Answer | None = None,
) -> Answer:
    """Answers a question about a clip with a pruned cache.

    A path is answered in one pass that prunes each layer before the next one runs. An `EncodedClip` keeps its prefill:
    each further question costs its own tokens, and gets the answer that it gets alone.

    Args:
        model: from `models.load`.
        clip: from `encode`, or what `encode` takes, or an embedded prompt for one question.
        question: in words.
        policy: how to prune; `default_policy` if none is given.
        max_new_tokens: longest answer.
        sampler: from logits to tokens.
        seed: of the sampler.
        stream: called with each piece of text as it is generated.
        follow_up: the answer that the question follows. It is asked on the pruned cache which that answer left.

    Raises:
        UserError: if the question is empty, the budget is too small, the prompt is too long for the model, or the
            weights are damaged.
    """
    policy = default_policy(model) if policy is None else policy
    try:
        reserved = reserved_slots(policy, max_new_tokens)
        if follow_up is not None:
            prompt = model.encode_next_question(follow_up.token_ids[-1:], question)  # that token is not cached yet
            logits, cache = _append(model, prompt, follow_up, policy, max_new_tokens, reserved)
        else:
            if not isinstance(clip, EncodedClip | EmbeddedPrompt):
                clip = encode(model, clip).prompt
            before = clip.prompt if isinstance(clip, EncodedClip) else clip
            prompt = before.then(model.encode_question(question))
            check_fits(model, prompt, max_new_tokens)
            policy.check(kv.count_tokens(kv.make_prompt(prompt.modality[None])))
            if isinstance(clip, EncodedClip):
                logits, scored = clip.ask(model, prompt, policy)
                cache = kv.prune(scored, policy, reserved_slots=reserved)
            else:
                arguments = in_bucket(prompt).arguments()
                logits, cache = kv.jitted.prefill(
                    model.decoder, model.params, policy=policy, reserved_slots=reserved, **arguments
                )
    except ValueError as error:
        raise UserError(str(error)) from error
    check_numbers(model, logits, cache)
    size, kept = kv.cache_bytes(cache), kv.kept_counts(cache)
    slot = sum(2 * layer.keys[:, :, :1].nbytes for layer in cache.layers)
    full = slot * kv.bucket_length(int(cache.length[0]))
    start = kv.start_decoding(logits, cache, jax.random.key(seed), sampler=sampler, stop_token_ids=model.stop_token_ids)
    token_ids, text, state = _write(model, start, policy, max_new_tokens, sampler, stream)
    check_numbers(model, logits, state.cache)
    kinds = (kv.Modality.TEXT, kv.Modality.VIDEO, kv.Modality.AUDIO)
    counts = {kind.name.lower(): prompt.count(kind) for kind in kinds}
    return Answer(text, tuple(token_ids), question, policy, counts, kept, size, full, state)


def check_fits(model: AVModel, prompt: EmbeddedPrompt, new_tokens: int, cached: int = 0) -> None:
    """Checks a prompt, after `cached` tokens, against the model's context.

    Raises:
        UserError: saying how to shorten it.
    """
    over = cached + len(prompt) + new_tokens - model.max_context
    if over > 0:
        media = len(prompt) - prompt.count(kv.Modality.TEXT)
        share = max(0, 100 * (media - over) // max(media, 1))
        ways = [f"cut the clip to about {share} % of its length"] if share else []
        if new_tokens > over:
            ways.append(f"ask for at most {new_tokens - over} new tokens")
        raise UserError(
            f"The prompt has {cached + len(prompt)} tokens and the answer up to {new_tokens}, but {model.name} reads "
            f"at most {model.max_context}: {' or '.join(ways or ['ask a shorter question'])}."
        )


def check_numbers(model: AVModel, logits: jax.Array, cache: kv.KVCache) -> None:
    """Checks that what the model computed are numbers.

    Raises:
        UserError: if not.
    """
    finite = [jnp.isfinite(logits).all(), *(layer.finite.all() for layer in cache.layers)]
    if not np.all(jax.device_get(finite)):
        raise UserError(
            f"{model.name} computes values that are not finite (NaN or infinite): its weights are damaged, or too "
            "large for their type; copy the checkpoint again."
        )


def _append(
    model: AVModel,
    prompt: EmbeddedPrompt,
    follow_up: Answer,
    policy: kv.CachePolicy,
    max_new_tokens: int,
    reserved: int,
) -> tuple[jax.Array, kv.KVCache]:
    cache = follow_up.state.cache
    check_fits(model, prompt, max_new_tokens, cached=int(cache.length[0]))
    arguments = {name: x for name, x in in_bucket(prompt).arguments().items() if name in ("inputs", "prompt")}
    return kv.jitted.extend(
        model.decoder, model.params, cache=cache, policy=policy, reserved_slots=reserved, **arguments
    )


def _write(
    model: AVModel,
    start: kv.DecodeState,
    policy: kv.CachePolicy,
    max_new_tokens: int,
    sampler: Sampler,
    stream: Callable[[str], None] | None,
) -> tuple[list[int], str, kv.DecodeState]:
    """Tokens, their text, and the state after them."""
    tokens: list[int] = []
    text = shown = ""
    more = {"sampler": sampler, "stop_token_ids": model.stop_token_ids}
    last = start
    for made, _, state in write(model.decoder, model.params, start, policy, max_new_tokens, **more):
        last = state
        tokens += made[0].tolist()
        text = model.detokenize(tokens)
        if stream is not None and not text.endswith("\ufffd"):  # half a character: wait for the rest
            stream(text[len(shown) :])
            shown = text
    if stream is not None and len(text) > len(shown):
        stream(text[len(shown) :])
    return tokens, text.strip(), last
