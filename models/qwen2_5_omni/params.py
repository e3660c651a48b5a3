"""Checkpoints of Qwen2.5-Omni: the whole model's, of which the thinker is read, or a thinker's alone."""

from pathlib import Path

import jax.numpy as jnp

from models.hf.checkpoint import open_checkpoint
from models.hf.config import Section
from models.hf.decoder import HEAD
from models.hf.source import Source
from models.layers.init import FastRngs
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.modeling import Thinker, thinker_tensors

PREFIX = "thinker."
ARCHITECTURE = "Qwen2_5OmniThinkerForConditionalGeneration"
"""The thinker's class in transformers."""
OTHERS = ("talker.*", "token2wav.*")
"""What the whole model's checkpoint holds beside the thinker: it makes speech of the answer."""


def open_thinker(folder: Path, section: Section) -> tuple[ThinkerConfig, Source]:
    """The thinker's configuration, and its checkpoint.

    Args:
        folder: of the checkpoint.
        section: its config.json.

    Raises:
        UserError: if there is no checkpoint, or it is damaged, or its configuration is incomplete.
    """
    thinker = section.section("thinker_config") if section.has("thinker_config") else section
    checkpoint = open_checkpoint(folder)
    headless = not {HEAD, PREFIX + HEAD} & checkpoint.tensors.keys()
    tied = headless and thinker.get("tie_word_embeddings", bool, True)
    config = ThinkerConfig.from_hf(thinker, tied=tied)

    def make(dtype: jnp.dtype) -> Thinker:
        return Thinker(config, rngs=FastRngs(0), dtype=dtype)

    alone = thinker.values | {"model_type": "qwen2_5_omni_thinker", "architectures": [ARCHITECTURE]}
    return config, Source(checkpoint, make, thinker_tensors(config), alone, prefix=PREFIX, ignore=OTHERS)
