"""A tiny Llama as a checkpoint folder."""

import json
from pathlib import Path

from models.decoder import Decoder, DecoderConfig
from models.hf.decoder import decoder_tensors, llama_section
from models.hf.export import save_params
from models.layers.init import FastRngs
from tests.models.parameters import random_params

CONFIG = DecoderConfig.tiny(head_dim=16, tie_word_embeddings=False)
STOP = (5, 11)


def write_llama(folder: Path, config: DecoderConfig = CONFIG) -> Path:
    """Writes random parameters, config.json and generation_config.json; two tokens end an answer."""
    _, params = random_params(lambda: Decoder(config, rngs=FastRngs(0)))
    save_params(folder, params, decoder_tensors(config), llama_section(config, "float32"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(STOP)}))
    return folder
