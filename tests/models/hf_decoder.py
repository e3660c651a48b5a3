"""The shared decoder's parameters as a transformers model, for parity tests."""

import jax
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


def hf_model(config, params):
    """The transformers model with these parameters: Qwen2 where projections have biases, else Llama."""
    kind = (Qwen2Config, Qwen2ForCausalLM) if config.attention_bias else (LlamaConfig, LlamaForCausalLM)
    model = kind[1](
        kind[0](
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=config.tie_word_embeddings,
            attn_implementation="eager",
        )
    ).eval()
    model.load_state_dict(hf_state(config, params))
    return model


def hf_state(config, params):
    """The state dict of `hf_model`."""
    state = {"model.embed_tokens.weight": params["tokens"]["embedding"], "model.norm.weight": params["norm"]["scale"]}
    head = params["tokens"]["embedding"] if config.tie_word_embeddings else params["head"]["kernel"].T
    state["lm_head.weight"] = head
    for i in range(config.num_hidden_layers):
        layer = jax.tree.map(lambda x, i=i: np.asarray(x)[i], params["layers"])
        at = f"model.layers.{i}."
        for ours, theirs in [("attn_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")]:
            state[f"{at}{theirs}.weight"] = layer[ours]["scale"]
        for name in "qkvo":
            state[f"{at}self_attn.{name}_proj.weight"] = layer[name]["kernel"].T
            if "bias" in layer[name]:
                state[f"{at}self_attn.{name}_proj.bias"] = layer[name]["bias"]
        for name in ("gate", "up", "down"):
            state[f"{at}mlp.{name}_proj.weight"] = layer["mlp"][name]["kernel"].T
    return {name: torch.tensor(np.asarray(value)) for name, value in state.items()}
