"""The decoder that every AV-LLM here shares: Llama and Qwen2, with grouped queries and (M-)RoPE.

The decoder knows nothing of caches or policies. It projects, rotates, and hands each layer's q, k and v to `attend`,
which answers with the attention output and that layer's next cache; so one definition serves prefill and decoding.
Training runs the same layers without a cache, over frozen parameters, in `train.smolav.language_model`.
"""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from acckv_jax.decoder import Attend
from acckv_jax.sharding import ShardingRules, head_axis
from acckv_jax.stacks import Stack, run_layers
from models.layers.init import Params
from models.layers.linear import Embed, Linear
from models.layers.mlp import SwiGLU, in_row_blocks
from models.layers.norm import RMSNorm
from models.layers.rope import Rotation, rotary_frequencies, rotate, rotation
from models.layers.stacked import layer_of, stacked


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and options of a Llama / Qwen2 decoder; the names are Hugging Face's."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    mrope_section: tuple[int, ...] | None = None

    @classmethod
    def smollm2_135m(cls) -> Self:
        """SmolLM2-135M-Instruct."""
        return cls(49152, 576, 30, 9, 3, 64, 1536, 1e5, 1e-5, 8192)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Two small layers, for tests."""
        return dataclasses.replace(cls(96, 32, 2, 4, 2, 8, 48, 1e4, 1e-5, 512), **changes)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: DecoderConfig, *, rules: ShardingRules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        c = config
        heads = head_axis(rules, c.num_key_value_heads)
        into = {"axis_out": heads, "batch": rules.batch, "use_bias": c.attention_bias, "rngs": rngs, "dtype": dtype}
        self.attn_norm = RMSNorm(c.hidden_size, epsilon=c.rms_norm_eps, dtype=dtype)
        self.q = Linear(c.hidden_size, c.num_attention_heads * c.head_dim, **into)
        self.k = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, **into)
        self.v = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, **into)
        self.o = Linear(
            c.num_attention_heads * c.head_dim, c.hidden_size, axis_in=heads, batch=rules.batch, rngs=rngs, dtype=dtype
        )
        self.mlp_norm = RMSNorm(c.hidden_size, epsilon=c.rms_norm_eps, dtype=dtype)
        self.mlp = SwiGLU(c.hidden_size, c.intermediate_size, rules=rules, rngs=rngs, dtype=dtype)
        self.head_dim = c.head_dim
        self.rope_theta = c.rope_theta

    def __call__(
        self, x: Float[Array, "B T D"], table: Rotation, index: int | Array, cache: Any, carry: Any, attend: Attend
    ) -> tuple[Float[Array, "B T D"], Any, Any]:
        """Applies layer number `index`; returns the hidden states, the layer's next cache, and the next carry."""
        h = self.attn_norm(x)
        q, k, v = (p(h).reshape(*h.shape[:2], -1, self.head_dim) for p in (self.q, self.k, self.v))
        more = {
            "hidden_states": x,
            "unrotated_q": q,
            "rotary_frequencies": rotary_frequencies(self.head_dim, self.rope_theta),
            "output_weights": self._output_weights(),
        }
        out, cache, carry = attend(index, rotate(q, table), rotate(k, table), v, cache, carry, **more)
        x = x + self.o(out.reshape(*h.shape[:2], -1))
        return x + in_row_blocks(lambda rows: self.mlp(self.mlp_norm(rows)), x), cache, carry

    def _output_weights(self) -> Float[Array, "N H D"]:
        kernel = self.o.kernel[...]
        sharding = jax.typeof(kernel).sharding
        rows, *columns = sharding.spec or (None,)
        shards = math.prod(sharding.mesh.shape[axis] for axis in ((rows,) if isinstance(rows, str) else rows or ()))
        if kernel.shape[0] // self.head_dim % shards:  # an Explicit mesh divides rows in the midst of a head
            kernel = jax.sharding.reshard(kernel, PartitionSpec(None, *columns))
        return kernel.reshape(-1, self.head_dim, kernel.shape[-1])


class Decoder(nnx.Module):
    """Token embeddings, layers, final norm and output head."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rules: ShardingRules = ShardingRules(),
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        c = config
        self.config = c
        self.tokens = Embed(c.vocab_size, c.hidden_size, batch=rules.batch, vocab=rules.vocab, rngs=rngs, dtype=dtype)
        self.layers = stacked(lambda: DecoderLayer(c, rules=rules, rngs=rngs, dtype=dtype), c.num_hidden_layers)
        self.norm = RMSNorm(c.hidden_size, epsilon=c.rms_norm_eps, dtype=dtype)
        self.head = (
            None
            if c.tie_word_embeddings
            else Linear(c.hidden_size, c.vocab_size, axis_out=rules.vocab, batch=rules.batch, rngs=rngs, dtype=dtype)
        )

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeds token ids."""
        return self.tokens(tokens)

    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[Array, "B T"] | Int[Array, "A B T"],
        caches: tuple[Stack, ...],
        carry: Any,
        attend: Attend,
        single: tuple[Params, ...] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...], Any]:
        """Runs the layers, each stack of them in a scan.

        Args:
            embeddings: input embeddings [B, T, D].
            positions: rotary positions [B, T], or [A, B, T] for M-RoPE.
            caches: one or several stacks, of whatever type `attend` takes.
            carry: for `attend` of the first layer.
            attend: see `acckv_jax.decoder.Attend`.
            single: the layers' parameters once more, one by one, for layers that are no part of a stack
                (`models.layers.stacked.single_layers`).

        Returns:
            Hidden states after the final norm, the next cache of each stack, and the last layer's carry.
        """
        c = self.config
        table = rotation(positions, c.head_dim, c.rope_theta, c.mrope_section)

        def apply(
            params: Params, x: Float[Array, "B T D"], number: Array, cache: Any, carry: Any
        ) -> tuple[Float[Array, "B T D"], Any, Any]:
            own = nnx.merge(nnx.graphdef(self.layers), params)
            return own(x, table, number, cache, carry, attend)

        alike = jax.jit(apply)  # traced once for all layers of one size

        def layer(
            x: Float[Array, "B T D"], number: int | Array, cache: Any, carry: Any
        ) -> tuple[Float[Array, "B T D"], Any, Any]:
            if single is None or not isinstance(number, int):
                return layer_of(self.layers, number)(x, table, number, cache, carry, attend)
            return alike(single[number], x, jnp.int32(number), cache, carry)

        x, after, carry = run_layers(layer, embeddings, caches, carry)
        return self.norm(x), after, carry

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits over the vocabulary, in the parameters' type."""
        return self.tokens.attend(hidden) if self.head is None else self.head(hidden)
