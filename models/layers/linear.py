"""Dense layers and embeddings over explicit output shardings."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from acckv_jax.sharding import MeshAxis, dividing, gathered, out_spec


class Linear(nnx.Module):
    """y = x @ kernel + bias, kernel stored as [in, out]; each mesh axis counts only where it divides the size.

    Args:
        features_in: size of the last axis of the input.
        features_out: size of the last axis of the output.
        use_bias: whether a bias [out] is added.
        axis_in: mesh axis that the input's last axis is divided over (the product is then summed over it).
        axis_out: mesh axis of the output's last axis.
        batch: mesh axis of the leading axis.
        spread: standard deviation of the initial kernel; None means features_in ** -0.5.
        rngs: random streams for initialisation.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        use_bias: bool = False,
        axis_in: MeshAxis = None,
        axis_out: MeshAxis = None,
        batch: MeshAxis = None,
        spread: float | None = None,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        init = jax.nn.initializers.normal(features_in**-0.5 if spread is None else spread)
        self.kernel = nnx.Param(init(rngs.params(), (features_in, features_out), dtype))
        self.bias = nnx.Param(jnp.zeros((features_out,), dtype)) if use_bias else None
        self.axes = (axis_in, axis_out, batch)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
        """Applies the layer to the last axis of `x`."""
        axis_in, axis_out = (dividing(axis, size) for axis, size in zip(self.axes, self.kernel.shape, strict=False))
        batch = dividing(self.axes[2], x.shape[0])
        kernel = gathered(self.kernel[...], axis_in, axis_out)
        out = out_spec(batch, *(None,) * (x.ndim - 2), axis_out)
        y = jnp.einsum("...d,df->...f", x, kernel, out_sharding=out)
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(gathered(self.bias[...], axis_out), y.shape, out_sharding=out)


class Embed(nnx.Module):
    """Token embeddings [V, D], drawn with a standard deviation of `spread`; `attend` is the tied output head."""

    def __init__(
        self,
        vocab_size: int,
        features: int,
        *,
        batch: MeshAxis,
        vocab: MeshAxis,
        spread: float = 0.02,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ) -> None:
        init = jax.nn.initializers.normal(spread)
        self.embedding = nnx.Param(init(rngs.params(), (vocab_size, features), dtype))
        self.axes = (batch, vocab)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeds token ids."""
        batch, vocab = self._axes(tokens)
        table = gathered(self.embedding[...], vocab, None)  # rows are summed over devices: the table stays divided
        return table.at[tokens].get(out_sharding=out_spec(batch, None, None))

    def _axes(self, x: Array) -> tuple[MeshAxis, MeshAxis]:
        batch, vocab = self.axes
        return dividing(batch, x.shape[0]), dividing(vocab, self.embedding.shape[0])

    def attend(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits of the tied head."""
        batch, vocab = self._axes(x)
        table = gathered(self.embedding[...], vocab, None)
        return jnp.einsum("btd,vd->btv", x, table, out_sharding=out_spec(batch, None, vocab))
