"""Low-rank updates of the decoder's attention (LoRA, Hu et al. 2021, arXiv 2106.09685), as plain arrays.

No module knows of them: training adds (x A) B beside a frozen product, and `merge_lora` adds A B to the kernels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.decoder import DecoderConfig
from models.layers.init import Params

TARGETS = ("q", "k", "v", "o")
Lora = dict[str, dict[str, Array]]  # target -> {"a": [L, in, R], "b": [L, R, out]}


def init_lora(key: Array, config: DecoderConfig, rank: int) -> Lora:
    """Random A, zero B: the updated model starts as the frozen one."""
    d, heads, kv = (
        config.hidden_size,
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    )
    sizes = {"q": (d, heads), "k": (d, kv), "v": (d, kv), "o": (heads, d)}
    layers = config.num_hidden_layers
    return {
        name: {
            "a": jax.random.normal(k, (layers, sizes[name][0], rank)) * sizes[name][0] ** -0.5,
            "b": jnp.zeros((layers, rank, sizes[name][1])),
        }
        for name, k in zip(TARGETS, jax.random.split(key, len(TARGETS)), strict=True)
    }


def merge_lora(params: Params, lora: dict[str, dict[str, Float[np.ndarray, "L i o"]]], scale: float) -> Params:
    """The decoder's parameters with kernel + scale * A B in every target of every layer (NumPy, float32)."""
    layers = dict(params["layers"])
    for name, pair in lora.items():
        delta = np.asarray(pair["a"], np.float32) @ np.asarray(pair["b"], np.float32)
        layers[name] = {**layers[name], "kernel": np.asarray(layers[name]["kernel"]) + np.float32(scale) * delta}
    return {**params, "layers": layers}
