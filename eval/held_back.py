"""Answers of pruned caches: one prefill of a prefix serves all its questions, policies and budgets.

The prefill's own logits are those of the full cache, whatever the policy. So the last token of every prompt is held
back and run on the pruned cache: an answer of one token shows what the policy lost, too.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import acckv_jax
from acckv_jax import CachePolicy, Decoder
from acckv_jax.generate import for_decoding
from acckv_jax.sharding import on_host
from eval.metrics import CUT_OFF
from eval.policies import check_layers, check_policies
from models.batching import padded
from models.errors import UserError
from models.interface import EmbeddedPrompt
from models.layers.init import Params
from models.retelling import retold

Name = TypeVar("Name")

SHORT = 16
"""Tokens of an answer up to which a loop over layers that are unrolled takes longer to compile than it saves."""


class Model(Protocol):
    """What a task asks of a language model; every `models.interface.AVModel` is one."""

    @property
    def family(self) -> str: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def params(self) -> Params: ...
    @property
    def max_context(self) -> int: ...
    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...
    def embed_text(self, ids: Sequence[int]) -> EmbeddedPrompt: ...
    def encode_question(self, text: str) -> EmbeddedPrompt: ...
    def encode_next_question(self, answer: str, text: str) -> EmbeddedPrompt: ...
    def detokenize(self, tokens: list[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Padding:
    """Lengths that prompts are padded to: few shapes, few programs.

    Attributes:
        prefix: lengths of prefixes, rising; longer ones are padded to `acckv_jax.bucket_length`.
        question: of questions, and the last rows of the prefix that a policy's window needs, to a multiple of this.
        rows: conversations that run at once, if there are more than one: several runs share the prefill of the prefix,
            and missing rows are filled up with the first.
        caches: most pruned caches of equal shapes, with as many conversations each, that answer at once; fewer are
            filled up with the first to a power of two.
    """

    prefix: tuple[int, ...] = ()
    question: int = 64
    rows: int = 1
    caches: int = 1


class Said(NamedTuple):
    """What a model said in a conversation.

    Attributes:
        answers: by turn.
        cache_bytes: bytes that the kept tokens took when the cache was pruned, see `live_bytes`; None without a cache.
    """

    answers: list[str]
    cache_bytes: int | None = None


def answers(
    model: Model,
    prefix: EmbeddedPrompt,
    prompts: Sequence[Sequence[EmbeddedPrompt]],
    policies: Mapping[Name, CachePolicy],
    wanted: Collection[Name],
    padding: Padding,
    max_new_tokens: int,
) -> Iterator[tuple[Name, list[Said]]]:
    """Greedy answers of conversations about one prefix, under each wanted policy.

    A turn follows the pruned cache as the question before left it, and what was generated in between is not in it: the
    prompt of the turn begins with the right answer.

    Args:
        model: the model.
        prefix: what all conversations begin with; at least one token.
        prompts: by turn, the tokens of each conversation.
        policies: by name. The prefix is scored for all of them, wanted or not, so that a run that was cut short and
            continued computes what it would have computed.
        wanted: names of those to answer with.
        padding: lengths.
        max_new_tokens: most tokens of an answer; an unfinished one ends in `CUT_OFF`.

    Yields:
        A name, and what was said in each conversation.

    Raises:
        BudgetError: if a budget is too small for a prompt.
        UserError: if a conversation is too long for the model, or a policy is made for other numbers of layers.
    """
    named = {f"{name}": policy for name, policy in policies.items()}
    check_layers(named, model.decoder.num_layers)
    conversations = len(prompts[0])
    tokens = len(prefix) + max_new_tokens + max(sum(map(len, asked)) for asked in zip(*prompts, strict=True))
    if tokens > model.max_context:
        raise UserError(
            f"Its prefix, questions and answer take {tokens} tokens, and the model can tell {model.max_context} apart."
        )
    for question in prompts[0]:
        check_policies(named, prefix.then(question).modality[:-1])

    score, read, shared = read_prefix(model, prefix, policies.values(), padding.prefix)
    lengths = [_multiple(turn, padding) for turn in prompts[1:]]

    def read_block(start: int) -> tuple[acckv_jax.Scored, list[list[EmbeddedPrompt]]]:
        """`padding.rows` conversations as all policies read them: their first questions, scored, and their turns."""
        rows = [start + row if start + row < conversations else start for row in range(padding.rows)]
        first, *later = ([turn[row] for row in rows] for turn in prompts)
        tails = [prefix.then(question).split(shared)[1] for question in first]
        held_back = [tail.split(len(tail) - 1) for tail in tails]
        repeated = acckv_jax.repeat_rows(read, len(rows))
        chunks = [chunk for chunk, _ in held_back]
        _, scored = score(**padded(chunks, _multiple(chunks, padding)).arguments(), before=repeated)
        return scored, [[last for _, last in held_back], *later]

    waiting: dict[Any, list[_Pruned]] = collections.defaultdict(list)
    said: dict[Name, dict[int, list[Said]]] = collections.defaultdict(dict)
    blocks = range(0, conversations, padding.rows)

    def answered(together: list[_Pruned]) -> Iterator[tuple[Name, list[Said]]]:
        """What these caches answer, and the names that have answered everything."""
        for one, found in zip(together, _converse(model, together, lengths, max_new_tokens), strict=True):
            said[one.name][one.start] = found
            if len(said[one.name]) == len(blocks):
                yield one.name, [row for start in blocks for row in said[one.name][start]][:conversations]

    for start in blocks:
        scored, turns = read_block(start)
        for name, policy in policies.items():
            if name not in wanted:
                continue
            cache = acckv_jax.prune(scored, policy, reserved_slots=policy.reserved_slots(max_new_tokens))
            one = _Pruned(name, start, cache, policy.while_decoding(), turns, live_bytes(cache))
            shapes = one.shapes
            waiting[shapes].append(one)
            if len(waiting[shapes]) == padding.caches:
                yield from answered(waiting.pop(shapes))
    for together in waiting.values():
        yield from answered(together)


def read_prefix(
    model: Model, prefix: EmbeddedPrompt, policies: Iterable[CachePolicy], lengths: Sequence[int] = ()
) -> tuple[Callable[..., tuple[jax.Array, acckv_jax.Scored]], acckv_jax.Scored, int]:
    """Reads what all questions share, once for all policies, with the second pass of those that have one.

    Args:
        model: the model.
        prefix: what all prompts begin with.
        policies: whose statistics are wanted.
        lengths: that the prefix is padded to, see `Padding`.

    Returns:
        `score` for what follows (its `before` is the second result), the prefix as far as every policy's window leaves
        it to that, and its length.
    """
    reading = tuple({(p.queries, p.needs, p.window, p.recent_queries): p for p in policies}.values())
    score = functools.partial(acckv_jax.jitted.score, model.decoder, model.params, policies=reading)
    shared = max(1, len(prefix) - max(policy.window for policy in reading))
    head = prefix.split(shared)[0]
    length = next((n for n in lengths if len(head) <= n), acckv_jax.bucket_length(len(head)))
    _, read = score(**padded([head], length).arguments(), complete=False)
    if any(policy.second_pass for policy in reading):
        read = retold(model, prefix, shared, read, reading)
    return score, read, shared


@dataclasses.dataclass(frozen=True)
class _Pruned:
    """A pruned cache that is to answer: whose it is, from which conversation on, its turns and its rows' bytes."""

    name: Any
    start: int
    cache: acckv_jax.KVCache
    policy: CachePolicy
    turns: list[list[EmbeddedPrompt]]
    sizes: list[int]

    @property
    def shapes(self) -> tuple:
        """What caches that answer at once have in common."""
        leaves, structure = jax.tree.flatten(self.cache)
        return self.policy, structure, tuple((x.shape, x.dtype) for x in leaves)


def _multiple(chunks: Sequence[EmbeddedPrompt], padding: Padding) -> int:
    return -(-max(len(chunk) for chunk in chunks) // padding.question) * padding.question


def _converse(model: Model, together: list[_Pruned], lengths: Sequence[int], max_new_tokens: int) -> list[list[Said]]:
    """What is said in all rows of caches of equal shapes; `lengths` are those of the turns after the first."""
    missing = (1 << (len(together) - 1).bit_length()) - len(together)
    filled = [*together, *[together[0]] * missing]
    cache, policy, by_turn = _joined([one.cache for one in filled]), together[0].policy, []
    extend = functools.partial(acckv_jax.jitted.extend, model.decoder, model.params, policy=policy)
    rows = [[chunk for one in filled for chunk in one.turns[turn]] for turn in range(len(together[0].turns))]
    logits, cache = extend(**padded(rows[0], 1).arguments(), cache=cache)
    for turn, length in zip(rows[1:], lengths, strict=True):
        following = extend(**padded(turn, length).arguments(), cache=cache)  # before decoding, which uses up the cache
        by_turn.append(_decoded(model, policy, logits, cache, max_new_tokens))
        logits, cache = following
    by_turn.append(_decoded(model, policy, logits, cache, max_new_tokens))
    said = iter(zip(*by_turn, strict=True))
    return [[Said(list(next(said)), size) for size in one.sizes] for one in together]


def _joined(caches: Sequence[acckv_jax.KVCache]) -> acckv_jax.KVCache:
    """The rows of caches of equal shapes as one batch; `next_slot`, which has none, is equal in all."""
    if len(caches) == 1:
        return caches[0]

    def rows(axis: int, first: jax.Array, *others: jax.Array) -> jax.Array:
        return first if first.ndim <= axis else jnp.concatenate([first, *others], axis)

    stacks = tuple(
        jax.tree.map(functools.partial(rows, int(one[0].is_stack)), *one)
        for one in zip(*(cache.stacks for cache in caches), strict=True)
    )
    length, delta = (jnp.concatenate([getattr(cache, name) for cache in caches]) for name in ("length", "delta"))
    return acckv_jax.KVCache(stacks, length, delta)


def live_bytes(cache: acckv_jax.KVCache) -> list[int]:
    """By row, the bytes of its kept tokens: keys, values, scales and what else a slot holds. Free slots do not count.

    A policy that allocates more than it fills looks the better for it; `acckv_jax.cache_bytes` counts that. Keys and
    values in float32 count as bfloat16, which caches are in wherever their size matters: on a CPU integers would
    otherwise seem to save twice what they do.
    """
    sizes = np.zeros(cache.length.shape[0])
    for stack in cache.stacks:
        size = acckv_jax.cache_bytes(acckv_jax.KVCache((stack,), cache.length, cache.delta))
        valid = on_host(stack.valid)
        slots = valid.shape[-1] - stack.reserved_slots
        rows = np.moveaxis(valid, -3, 0).reshape(len(sizes), -1).sum(-1)
        prompt_slots = valid.size // valid.shape[-1] * slots
        halved = isinstance(stack.k, jax.Array) and stack.k.dtype == jnp.float32
        about = sum(leaf.dtype.itemsize for leaf in jax.tree.leaves(stack) if leaf.shape == valid.shape)
        sizes += rows * (size.prompt / prompt_slots / (1 + halved) + about)
    return [round(size) for size in sizes.tolist()]


def _decoded(
    model: Model, policy: CachePolicy, logits: jax.Array, cache: acckv_jax.KVCache, max_new_tokens: int
) -> list[str]:
    """Greedy answers of all rows."""
    stop = model.stop_token_ids
    if max_new_tokens > SHORT:
        cache = for_decoding(model.decoder, cache)
    state = acckv_jax.start_decoding(logits, cache, jax.random.key(0), stop_token_ids=stop)
    tokens = on_host(state.token)[:, None]
    if max_new_tokens > 1:
        options = {"policy": policy, "steps": max_new_tokens - 1, "stop_token_ids": stop}
        made, number, _ = acckv_jax.jitted.decode(model.decoder, model.params, state, **options)
        tokens = np.concatenate([tokens, on_host(made)[:, : int(number)]], axis=1)
    return [_text(model, row) for row in tokens.tolist()]


def _text(model: Model, row: list[int]) -> str:
    """An answer up to its end."""
    end = next((i for i, token in enumerate(row) if token in model.stop_token_ids), None)
    return model.detokenize(row) + CUT_OFF if end is None else model.detokenize(row[:end]).strip()
