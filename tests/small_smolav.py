"""A small SmolAV."""

import dataclasses
import functools

import jax

from models.decoder import DecoderConfig
from models.layers.init import FastRngs, init_params
from models.smolav.config import SmolAVConfig
from models.smolav.encoders import Encoders
from models.smolav.model import SmolAVModel
from models.smolav.modeling import SmolAV
from models.smolav.preprocess import Chat
from models.text.tokenizers import load_smollm2_tokenizer


@functools.cache
def small_smolav() -> SmolAVModel:
    """SmolAV with its real encoders and tokenizer over a random decoder of three layers."""
    decoder = DecoderConfig.tiny(vocab_size=49152, num_hidden_layers=3, max_position_embeddings=2048)
    config = dataclasses.replace(SmolAVConfig.smollm2_135m(), decoder=decoder)
    graph, params = init_params(lambda: SmolAV(config, rngs=FastRngs(0)))
    tokenizer = load_smollm2_tokenizer()
    chat = Chat.smollm2(lambda text: tokenizer.encode(text).ids)
    tokenizer.encode_special_tokens = True
    return SmolAVModel("small", decoder, graph, jax.device_put(params), config, Encoders.load(config), tokenizer, chat)
