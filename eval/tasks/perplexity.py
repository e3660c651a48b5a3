"""How well SmolLM2 foretells a text after a pruned context: the mean negative log-likelihood of the following tokens.

Its exponential is the perplexity. The text is the user's: `--data wiki.test.raw`, WikiText-2's as Merity et al.
(2016, arXiv 1609.07843) publish it, or any other file of plain text.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

import acckv_jax
from acckv_jax import CachePolicy
from acckv_jax.generate import for_decoding
from eval.held_back import Said, live_bytes
from eval.policies import check_layers, check_policies
from eval.tasks.interface import Example, Name, Question
from eval.text import TextTask, load_text_model
from models.batching import padded
from models.errors import UserError
from models.interface import EmbeddedPrompt
from models.smolav.chat import SmolLM2Chat

CONTEXT, FOLLOWING = 1024, 128
"""Tokens that are read, and pruned; and tokens after them that are foretold one by one."""


@dataclasses.dataclass(frozen=True)
class Perplexity(TextTask):
    """Non-overlapping pieces of a text of CONTEXT + FOLLOWING tokens; the answer is a number, which is its score."""

    model: SmolLM2Chat
    text: Int[np.ndarray, " T"]

    metric: ClassVar[str] = "negative_log_likelihood"
    max_new_tokens: ClassVar[int] = FOLLOWING

    @classmethod
    def load(cls, model: str, data: Path | None) -> Self:
        """SmolLM2 and the text.

        Raises:
            UserError: if there is no text, it is too short, or the model is another one or cannot be loaded.
        """
        if data is None or not data.is_file():
            raise UserError("This task reads a file of plain text, such as WikiText-2's wiki.test.raw; name it --data.")
        try:
            text = data.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{data} cannot be read as text in UTF-8 ({error}); name another file.") from error
        loaded = load_text_model(model)
        ids = np.asarray(loaded.tokenizer.encode(text).ids, np.int32)
        if len(ids) < CONTEXT + FOLLOWING:
            raise UserError(f"{data} has {len(ids)} tokens, fewer than {CONTEXT + FOLLOWING}; take a longer text.")
        return cls(loaded, ids)

    @property
    def ids(self) -> Sequence[str]:
        """Numbers of pieces."""
        return [str(number) for number in range(len(self.text) // (CONTEXT + FOLLOWING))]

    def example(self, id: str) -> Example:
        """The piece of this number; the prefix is what is read, and what follows."""
        start = int(id) * (CONTEXT + FOLLOWING)
        piece = self.text[start : start + CONTEXT + FOLLOWING]
        question = Question("(the following text)", ("",), "text")
        return Example((self.model.embed_text(piece[:CONTEXT]), piece[CONTEXT:]), ((question,),))

    def answers(
        self, example: Example, policies: Mapping[Name, CachePolicy], wanted: Collection[Name]
    ) -> Iterator[tuple[Name, list[Said]]]:
        """The mean negative log-likelihood of the following tokens, in nats, under each wanted policy."""
        prefix, following = example.prefix
        named = {f"{name}": policy for name, policy in policies.items()}
        check_layers(named, self.model.decoder.num_layers)
        read, last = prefix.split(CONTEXT - 1)
        check_policies(named, read.modality)
        reading = tuple({(p.queries, p.needs, p.window): p for p in policies.values()}.values())
        of_model = self.model.decoder, self.model.params
        _, scored = acckv_jax.jitted.score(*of_model, **padded([read], CONTEXT).arguments(), policies=reading)
        for name in wanted:
            yield name, [self._said(scored, policies[name], last, following)]

    def _said(
        self, scored: acckv_jax.Scored, policy: CachePolicy, last: EmbeddedPrompt, following: Int[np.ndarray, " n"]
    ) -> Said:
        """Feeds what follows the last token, which runs on the pruned cache already."""
        of_model, decoding = (self.model.decoder, self.model.params), policy.while_decoding()
        cache = acckv_jax.prune(scored, policy, reserved_slots=policy.reserved_slots(len(following)))
        (size,), arguments = live_bytes(cache), padded([last], 1).arguments()
        logits, cache = acckv_jax.jitted.extend(*of_model, **arguments, cache=cache, policy=decoding)
        cache, active, losses = for_decoding(self.model.decoder, cache), jnp.ones(1, bool), []
        for token in following:
            losses.append(-jax.nn.log_softmax(logits)[0, int(token)])
            logits, cache = acckv_jax.jitted.decode_step(
                *of_model, jnp.asarray([token], jnp.int32), cache, decoding, active
            )
        return Said([f"{np.mean(jax.device_get(losses)):.6f}"], size)

    def score(self, answer: str, question: Question) -> float:
        """The number itself."""
        return float(answer)
