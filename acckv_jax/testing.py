"""A tiny decoder, to try policies on: used by the examples in this library's docstrings."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from acckv_jax.decoder import Attend, Decoder
from acckv_jax.modality import Modality, Prompt, make_prompt
from acckv_jax.stacks import run_layers


@dataclasses.dataclass(frozen=True)
class TinyTransformer:
    """Attention layers without anything else, as a `StepFn` over token ids; no rotation of queries and keys.

    Attributes:
        num_layers: layers.
        heads: query heads.
        kv_heads: KV heads.
        head_dim: their size.
        scans: whether all layers run in a scan.
    """

    num_layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    scans: bool = False

    @property
    def width(self) -> int:
        """D, hidden units."""
        return self.heads * self.head_dim

    def init(self, key: jax.Array, vocabulary: int = 32) -> dict[str, jax.Array]:
        """Random parameters."""
        keys = jax.random.split(key, 5)
        shapes = {
            "embed": (vocabulary, self.width),
            "q": (self.num_layers, self.width, self.heads, self.head_dim),
            "k": (self.num_layers, self.width, self.kv_heads, self.head_dim),
            "v": (self.num_layers, self.width, self.kv_heads, self.head_dim),
            "o": (self.num_layers, self.heads, self.head_dim, self.width),
        }
        return {
            name: jax.random.normal(one, shape) * self.width**-0.5
            for one, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def __call__(
        self,
        params: dict[str, jax.Array],
        inputs: jax.Array,
        positions: jax.Array,
        caches: tuple[Any, ...],
        carry: Any,
        attend: Attend,
        logit_positions: jax.Array,
    ) -> tuple[jax.Array, tuple[Any, ...], Any]:
        """Token ids [B, T] to logits [B, V]."""

        def layer(x: jax.Array, number: int | jax.Array, cache: Any, carry: Any) -> tuple[jax.Array, Any, Any]:
            q, k, v = (jnp.einsum("btd,dnh->btnh", x, params[name][number]) for name in "qkv")
            more = {
                "hidden_states": x,
                "unrotated_q": q,
                "rotary_frequencies": jnp.zeros(self.head_dim // 2),
                "output_weights": params["o"][number],
            }
            out, cache, carry = attend(number, q, k, v, cache, carry, **more)
            return x + jnp.einsum("btnh,nhd->btd", out, more["output_weights"]), cache, carry

        x, after = params["embed"][inputs], []
        if self.scans:
            x, after, carry = run_layers(layer, x, caches, carry)
        else:
            for number, cache in enumerate(caches):
                x, cache, carry = layer(x, number, cache, carry)
                after.append(cache)
        last = jax.vmap(lambda states, row: states[row])(x, logit_positions)
        return last @ params["embed"].T, tuple(after), carry


@functools.cache
def tiny_decoder(tokens: int = 64, *, scans: bool = False) -> tuple[Decoder, dict[str, jax.Array], np.ndarray, Prompt]:
    """A decoder, its parameters, token ids [1, tokens], and a prompt of text, video, audio and text.

    Example:
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> decoder.num_layers, inputs.shape
        (2, (1, 64))
    """
    model = TinyTransformer(scans=scans)
    kinds = [Modality.TEXT, Modality.VIDEO, Modality.AUDIO, Modality.TEXT]
    media = (tokens - 8) // 2
    modality = np.repeat(kinds, [4, media, tokens - 8 - media, 4])[None]
    inputs = np.random.default_rng(0).integers(0, 32, (1, tokens)).astype(np.int32)
    return Decoder(model, model.num_layers, scans), model.init(jax.random.key(0)), inputs, make_prompt(modality)
