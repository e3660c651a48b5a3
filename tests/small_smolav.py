"""A small SmolAV."""

import dataclasses
import functools

import jax

from models.decoder import DecoderConfig
from models.layers.init import FastRngs, init_params
from models.smolav.chat import chat_tokens
from models.smolav.config import SmolAVConfig
from models.smolav.encoders import Encoders
from models.smolav.model import SmolAVModel
from models.smolav.modeling import SmolAV


@functools.cache
def small_smolav() -> SmolAVModel:
    """SmolAV with its real encoders and tokenizer over a random decoder of three layers."""
    decoder = DecoderConfig.tiny(vocab_size=49152, num_hidden_layers=3, max_position_embeddings=2048)
    config = dataclasses.replace(SmolAVConfig.smollm2_135m(), decoder=decoder)
    graph, params = init_params(lambda: SmolAV(config, rngs=FastRngs(0)))
    params = jax.device_put(params)
    return SmolAVModel("small", decoder, graph, params, *chat_tokens(), config, Encoders.load(config))
