"""Which tokens of a prompt each policy keeps: for the overlap of policies, and for looking at one clip."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

import acckv_jax as kv
from acckv_jax.sharding import on_host
from eval.held_back import Model, read_prefix
from eval.policies import check_layers, check_policies
from models.batching import padded
from models.interface import EmbeddedPrompt


class Kept(NamedTuple):
    """What a pruned cache holds of a prompt of T tokens.

    Attributes:
        tokens: [L, K, T] how many tokens the slot of each kept token holds: 1, more where others were merged into it,
            and 0 for a token that is not kept.
        modality: [T] of the tokens.
    """

    tokens: Float[np.ndarray, "L K T"]
    modality: Int[np.ndarray, " T"]

    @property
    def by_layer(self) -> Float[np.ndarray, "L T"]:
        """Share of the KV heads that keep each token."""
        return (self.tokens > 0).mean(1)


def kept_by(
    model: Model, prefix: EmbeddedPrompt, question: EmbeddedPrompt, policies: Mapping[str, kv.CachePolicy]
) -> Iterator[tuple[str, Kept]]:
    """What each policy keeps of a prompt, of which the last token is held back as in a benchmark.

    Raises:
        UserError: if a budget is too small, or a policy is made for another decoder.
    """
    whole = prefix.then(question)
    prompt, _ = whole.split(len(whole) - 1)
    check_layers(policies, model.decoder.num_layers)
    check_policies(policies, prompt.modality)
    score, read, shared = read_prefix(model, prefix, policies.values())
    rest = prompt.split(shared)[1]
    _, scored = score(**padded([rest], kv.bucket_length(len(rest))).arguments(), before=read)
    for name, policy in policies.items():
        cache = kv.prune(scored, policy)
        yield name, Kept(np.stack([tokens_of(layer, len(prompt)) for layer in cache.layers]), prompt.modality)


def tokens_of(layer: kv.LayerCache, length: int) -> Float[np.ndarray, "K T"]:
    """How many tokens the slot of each kept token of the first row holds, as `Kept.tokens`."""
    valid, index, count = (on_host(x)[0] for x in (layer.valid, layer.index, layer.multiplicity))
    found = np.zeros((len(valid), length), np.float32)
    heads, slots = np.nonzero(valid)
    found[heads, index[heads, slots]] = count[heads, slots]
    return found


def overlap(kept: Sequence[Kept]) -> Float[np.ndarray, "P P"]:
    """Of each pair of selections of one prompt, the share of media tokens in both among those in either.

    Counted over layers and KV heads together (Jaccard index); text, which most policies keep whole, is left out.
    1 stands for the same selection, of which there are no two policies then.
    """
    media = kept[0].modality != kv.Modality.TEXT
    chosen = np.stack([(one.tokens[..., media] > 0).ravel() for one in kept]).astype(np.float64)
    both = chosen @ chosen.T
    either = chosen.sum(1)[:, None] + chosen.sum(1)[None] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
