"""The towers with their parameters divided over a mesh compute what they do on one device."""

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType

from models.hf.checkpoint import open_checkpoint
from models.hf.load import load_params
from models.layers.init import FastRngs
from models.placement import abstract_params_on
from models.videollama2.modeling import VideoLLaMA2
from models.videollama2.params import videollama2_tensors
from tests.models.videollama2 import seeded
from tests.models.videollama2.cases import MODEL
from tests.models.videollama2.checkpoints import case_config, write_checkpoint
from tests.models.videollama2.parameters import seeded_params
from tests.tolerances import FP32

CASE = MODEL[0]
CONFIG = case_config(CASE)


def towers(graph, params):
    side = CONFIG.vision.image_size
    frames = seeded.image(CASE.seed, (CONFIG.num_frames, side, side, 3))
    banks = seeded.banks(CASE.seed, (1, CASE.frames, CASE.bands))[0]

    @jax.jit
    def run(params, frames, banks):
        model = nnx.merge(graph, params)
        return model.see(frames), model.hear(banks)

    return run(params, frames, banks)


@pytest.mark.complete
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_divided_towers(tmp_path, kind):
    write_checkpoint(tmp_path, CASE, bins=False)
    mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(kind,) * 3)
    graph, shapes = abstract_params_on(mesh, lambda: VideoLLaMA2(CONFIG, rngs=FastRngs(0)))
    tensors = videollama2_tensors(CONFIG)
    params = load_params(open_checkpoint(tmp_path), tensors, shapes)
    divided = [path for path, leaf in flatten_dict(params).items() if not leaf.sharding.is_fully_replicated]
    assert {path[0] for path in divided} == {"decoder", "vision", "connector", "audio", "audio_projector"}
    with jax.set_mesh(mesh):
        ours = towers(graph, params)
    for found, expected in zip(ours, towers(graph, seeded_params(CASE.seed, tensors, shapes)), strict=True):
        np.testing.assert_allclose(found, expected, **FP32)
