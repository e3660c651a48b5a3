"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737): parameters of the shared decoder from the GGUF file."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from models.decoder import DecoderConfig
from models.errors import UserError
from models.hub.weights import fetch
from models.layers.init import Params
from models.readers.gguf import read_gguf


def load_smollm2() -> tuple[DecoderConfig, Params]:
    """Configuration and float32 parameters (NumPy arrays) for `models.decoder.Decoder`.

    Raises:
        UserError: if the weights cannot be fetched or read.
    """
    metadata, tensors = read_gguf(fetch("smollm2"))
    config = llama_config(metadata, tied="output.weight" not in tensors)
    return config, llama_params(tensors, config)


def llama_config(metadata: dict[str, Any], *, tied: bool) -> DecoderConfig:
    """The decoder's configuration from GGUF metadata of the llama architecture; nothing is defaulted.

    Raises:
        UserError: if the metadata are of another architecture, or lack a value.
    """
    if (architecture := metadata.get("general.architecture")) != "llama":
        raise UserError(f"The GGUF file holds the architecture {architecture!r}; only 'llama' is supported.")
    try:
        heads = metadata["llama.attention.head_count"]
        return DecoderConfig(
            vocab_size=metadata["llama.vocab_size"],
            hidden_size=metadata["llama.embedding_length"],
            num_hidden_layers=metadata["llama.block_count"],
            num_attention_heads=heads,
            num_key_value_heads=metadata["llama.attention.head_count_kv"],
            head_dim=metadata["llama.rope.dimension_count"],
            intermediate_size=metadata["llama.feed_forward_length"],
            rope_theta=_decimal(metadata["llama.rope.freq_base"]),
            rms_norm_eps=_decimal(metadata["llama.attention.layer_norm_rms_epsilon"]),
            max_position_embeddings=metadata["llama.context_length"],
            tie_word_embeddings=tied,
        )
    except KeyError as error:
        raise UserError(f"The GGUF file lacks the key {error}; use a complete llama checkpoint.") from error


def _decimal(stored: float) -> float:
    """The short decimal number that was rounded to float32 in the file: 1e-5, not 9.99999975e-6."""
    return float(str(np.float32(stored)))


def llama_params(tensors: dict[str, Float[np.ndarray, "..."]], config: DecoderConfig) -> Params:
    """GGUF's llama tensors as parameters of the decoder."""

    def linear(name: str) -> Params:
        return {"kernel": tensors[name + ".weight"].T}

    def rotary(name: str, heads: int) -> Params:
        return {"kernel": halves_from_pairs(tensors[name + ".weight"], heads).T}

    def layer(number: int) -> Params:
        name = f"blk.{number}."
        return {
            "attn_norm": {"scale": tensors[name + "attn_norm.weight"]},
            "q": rotary(name + "attn_q", config.num_attention_heads),
            "k": rotary(name + "attn_k", config.num_key_value_heads),
            "v": linear(name + "attn_v"),
            "o": linear(name + "attn_output"),
            "mlp_norm": {"scale": tensors[name + "ffn_norm.weight"]},
            "mlp": {part: linear(name + "ffn_" + part) for part in ("gate", "up", "down")},
        }

    params = {
        "tokens": {"embedding": tensors["token_embd.weight"]},
        "layers": jax.tree.map(lambda *x: np.stack(x), *map(layer, range(config.num_hidden_layers))),
        "norm": {"scale": tensors["output_norm.weight"]},
    }
    return params if config.tie_word_embeddings else params | {"head": linear("output")}


def halves_from_pairs(weight: Float[np.ndarray, "out in"], heads: int) -> Float[np.ndarray, "out in"]:
    """Reorders each head's rows from GGUF's order, which rotates neighbours, to ours, which rotates (i, i + H/2)."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
