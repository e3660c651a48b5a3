"""SigLIP's vision transformer against transformers' through a checkpoint on disk.

PARITY_CASES=200 runs more random cases than the default 20.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import SiglipVisionConfig, SiglipVisionModel

from models.hf.checkpoint import open_checkpoint
from models.hf.load import load_params
from models.layers.init import FastRngs, abstract_params
from models.vision.siglip import SiglipConfig, SiglipVision, siglip_tensors
from tests.models.videollama2 import seeded
from tests.tiers import quick_only
from tests.tolerances import LOGITS

CASES = int(os.environ.get("PARITY_CASES", "20"))
SHAPES = [  # cases share them, to compile few programs
    SiglipConfig.tiny(),
    SiglipConfig.tiny(num_attention_heads=4, image_size=33, layer_norm_eps=1e-5),
    SiglipConfig.tiny(hidden_size=24, num_attention_heads=1, image_size=35, patch_size=7, num_hidden_layers=2),
    SiglipConfig.tiny(hidden_size=18, num_attention_heads=3, intermediate_size=40, image_size=80),  # 256 patches
]


@functools.cache
def tower(config):
    graph, shapes = abstract_params(lambda: SiglipVision(config, rngs=FastRngs(0)))

    @functools.partial(jax.jit, static_argnums=2)
    def run(params, pixels, layers):
        siglip = nnx.merge(graph, params)
        return siglip.patches(pixels, layers), siglip(pixels)

    return run, shapes


def reference(config, seed):
    torch.manual_seed(seed)
    sizes = {name: getattr(config, name) for name in config.__dataclass_fields__}
    model = SiglipVisionModel(SiglipVisionConfig(**sizes)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


@pytest.mark.parametrize("seed", quick_only(range(CASES), (0, 3)))
def test_equals_transformers(seed, tmp_path):
    config = SHAPES[seed % len(SHAPES)]
    model = reference(config, seed)
    model.save_pretrained(tmp_path)
    run, shapes = tower(config)
    params = load_params(open_checkpoint(tmp_path), siglip_tensors(config), shapes, prefix="vision_model.")
    pixels = seeded.image(seed, (2, config.image_size, config.image_size, 3))
    patches, pooled = run(params, pixels, config.num_hidden_layers - 1)
    with torch.no_grad():
        theirs = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), output_hidden_states=True)
    np.testing.assert_allclose(patches, theirs.hidden_states[-2].numpy(), **LOGITS)
    np.testing.assert_allclose(pooled, theirs.pooler_output.numpy(), **LOGITS)


def test_bad_input():
    run, shapes = tower(SiglipConfig.tiny())
    with pytest.raises(ValueError, match="resize them"):
        jax.eval_shape(lambda p, x: run(p, x, 2), shapes, jnp.zeros((1, 20, 21, 3)))
    with pytest.raises(ValueError, match="so 4 of them cannot run"):
        jax.eval_shape(lambda p, x: run(p, x, 4), shapes, jnp.zeros((1, 20, 20, 3)))
    with pytest.raises(ValueError, match="multiple of its 3 heads"):
        SiglipConfig.tiny(num_attention_heads=3)
