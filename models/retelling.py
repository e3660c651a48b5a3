"""The second pass of policies such as KVzip: a model says again what it was shown, and its cache is told what it used.

What it says of a clip is generated, by the whole cache. A prompt of text alone is repeated word by word.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax

import acckv_jax as kv
from acckv_jax.generate import for_decoding, reserved_slots, write
from models.batching import Batch, in_bucket
from models.interface import EmbeddedPrompt
from models.layers.init import Params

DESCRIBE = "Describe everything that is shown, in order."
TRANSCRIBE = "Say everything that is heard, in order."
REPEAT = "Repeat the previous context exactly."
LONGEST = 64
"""Most tokens of a description."""


class Model(Protocol):
    """What is asked of a model; every `models.interface.AVModel` is one."""

    @property
    def decoder(self) -> kv.Decoder:
        """See `AVModel`."""
        ...

    @property
    def params(self) -> Params:
        """See `AVModel`."""
        ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """See `AVModel`."""
        ...

    def embed_text(self, ids: Sequence[int]) -> EmbeddedPrompt:
        """See `AVModel`."""
        ...

    def encode_question(self, text: str) -> EmbeddedPrompt:
        """See `AVModel`."""
        ...


def retold(
    model: Model, prefix: EmbeddedPrompt, tokens: int, scored: kv.Scored, policies: Sequence[kv.CachePolicy]
) -> kv.Scored:
    """A clip (or text) that was read, with the statistics of a second pass over it: see `acckv_jax.probe`.

    It costs the generation of a description of what is shown and of what is heard, up to `LONGEST` tokens each, and
    reading both with their instructions once more; of text alone, reading it once more.

    Args:
        model: the model.
        prefix: all that precedes a question.
        tokens: how many of its tokens have been read; the others are read with each instruction.
        scored: these.
        policies: whose statistics are wanted; those that read one pass are ignored.
    """
    second = tuple(policy for policy in policies if policy.second_pass)
    kinds = ((kv.Modality.VIDEO, DESCRIBE), (kv.Modality.AUDIO, TRANSCRIBE))
    for instruction in [text for kind, text in kinds if prefix.count(kind)] or [REPEAT]:
        asked = prefix.then(model.encode_question(instruction))
        said = prefix if instruction == REPEAT else model.embed_text(_description(model, asked, tokens, scored))
        chunk = _arguments(in_bucket(asked.then(said).split(tokens)[1]))
        scored = kv.jitted.probe(model.decoder, model.params, **chunk, scored=scored, policies=second)
    return scored


def _description(model: Model, asked: EmbeddedPrompt, tokens: int, scored: kv.Scored) -> list[int]:
    """What the model says, token by token, by the whole cache."""
    policy, stop = kv.Full(), model.stop_token_ids
    question = in_bucket(asked.split(tokens)[1]).arguments()
    slots = reserved_slots(policy, LONGEST)
    logits, cache = kv.jitted.extend(
        model.decoder, model.params, **question, cache=scored.cache, policy=policy, reserved_slots=slots
    )
    state = kv.start_decoding(logits, for_decoding(model.decoder, cache), jax.random.key(0), stop_token_ids=stop)
    said = write(model.decoder, model.params, state, policy, LONGEST, stop_token_ids=stop)
    return [int(token) for new, number, _ in said for token in new[0, : int(number[0])]]


def _arguments(batch: Batch) -> dict[str, Any]:
    """Of `probe`, which leaves the positions of later tokens as they are."""
    return {name: value for name, value in batch.arguments().items() if name != "delta"}
