"""Llama and Qwen2 decoders in Hugging Face's format: configuration and names of tensors."""

import dataclasses
from typing import Any

from models.decoder import DecoderConfig
from models.hf.config import Section, rope
from models.hf.tensors import Path, Tensor, Tensors, linear, norm, of_layer

HEAD, EMBEDDINGS = "lm_head.weight", "{}embed_tokens.weight"
FULL = "full_attention"


def decoder_config(section: Section, *, tied: bool, attention_bias: bool) -> DecoderConfig:
    """The decoder's configuration; `check` the section afterwards (`reading` does).

    Args:
        section: of a Llama or Qwen2 model, or the text section of a larger one.
        tied: whether the output head is the embeddings.
        attention_bias: whether q, k and v have biases (o never has one).

    Raises:
        UserError: if the rotary embeddings are not supported.
    """
    hidden, heads = section.positive("hidden_size"), section.positive("num_attention_heads")
    # Absent, as in most files of transformers 4, these two follow from the others: see LlamaConfig.
    kv_heads = section.positive("num_key_value_heads", heads)
    head_dim = section.positive("head_dim", hidden // max(heads, 1))
    theta, sections = rope(section)
    _refuse(section, kv_heads and heads % kv_heads, "num_key_value_heads must divide num_attention_heads")
    derived = heads and not section.has("head_dim")
    _refuse(section, derived and hidden % heads, "num_attention_heads must divide hidden_size")
    _refuse(section, head_dim % 2, f"the heads are {head_dim} wide, which must be even for rotary embeddings")
    _refuse(
        section,
        sections and head_dim > 0 and 2 * sum(sections) != head_dim,
        f"mrope_section must sum to {head_dim // 2}",
    )
    _refuse(section, section.need("hidden_act", str) not in ("silu", ""), "only silu is supported as hidden_act")
    layers = section.get("layer_types", list, [])
    _refuse(section, any(kind != FULL for kind in layers), f"only {FULL} is supported in layer_types")
    section.only("partial_rotary_factor", 1.0)
    for name in ("use_sliding_window", "mlp_bias", *(() if attention_bias else ("attention_bias",))):
        section.only(name, False)
    return DecoderConfig(
        vocab_size=section.positive("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=section.positive("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=section.positive("intermediate_size"),
        rope_theta=theta,
        rms_norm_eps=section.need("rms_norm_eps", float),
        max_position_embeddings=section.positive("max_position_embeddings"),
        attention_bias=attention_bias,
        tie_word_embeddings=tied,
        mrope_section=sections,
    )


def _refuse(section: Section, condition: object, text: str) -> None:
    if condition:
        section.problem(f"{text} ({section.at})" if section.at else text, None)


def llama_section(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a Llama by itself: what `decoder_config` reads again.

    Args:
        config: of a decoder without biases and with one axis of positions.
        dtype: name of the parameters' type.
    """
    assert not config.attention_bias and config.mrope_section is None
    same = dataclasses.asdict(config)
    for ours in ("rope_theta", "mrope_section"):
        del same[ours]
    return same | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": dtype,
    }


def decoder_tensors(config: DecoderConfig, *, prefix: str = "model.", head: str = HEAD, into: Path = ()) -> Tensors:
    """Names of the tensors of `models.decoder.Decoder`.

    Args:
        config: the decoder's; with tied embeddings there is no head (see `decoder_copies`).
        prefix: of all names but the head's.
        head: name of the output head's weight.
        into: where the decoder's parameters are nested.
    """
    bias = config.attention_bias
    tensors = {EMBEDDINGS.format(prefix): Tensor((*into, "tokens", "embedding"))}
    for i in range(config.num_hidden_layers):
        name, path = f"{prefix}layers.{i}", (*into, "layers")
        layer = norm(f"{name}.input_layernorm", (*path, "attn_norm"))
        for part in "qkv":
            layer |= linear(f"{name}.self_attn.{part}_proj", (*path, part), bias=bias)
        layer |= linear(f"{name}.self_attn.o_proj", (*path, "o"))
        layer |= norm(f"{name}.post_attention_layernorm", (*path, "mlp_norm"))
        for part in ("gate", "up", "down"):
            layer |= linear(f"{name}.mlp.{part}_proj", (*path, "mlp", part))
        tensors |= of_layer(i, layer)
    tensors |= norm(f"{prefix}norm", (*into, "norm"))
    if not config.tie_word_embeddings:
        tensors[head] = Tensor((*into, "head", "kernel"), (1, 0))
    return tensors


def decoder_copies(config: DecoderConfig) -> dict[str, str]:
    """Of tied embeddings some files hold a second copy, as the head: its name -> that of the embeddings."""
    return {HEAD: EMBEDDINGS.format("model.")} if config.tie_word_embeddings else {}
