"""A checkpoint read straight onto a mesh computes what it computes on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import acckv_jax as kv
from models.batching import padded
from models.decoder import DecoderConfig
from models.hf.config import reading
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.params import open_thinker
from tests.models.cached import logits_through_cache
from tests.models.qwen2_5_omni.thinkers import Ours, embedded, random_case, reference_thinker
from tests.tiers import quick_first
from tests.tolerances import FP32

LENGTH, STEPS = 320, 4
TEXT = DecoderConfig(64, 64, 2, 4, 4, 16, 96, 1e6, 1e-6, 4096, True, False, mrope_section=(2, 3, 3))
CONFIG = ThinkerConfig.tiny(text=TEXT)
POLICY = kv.make_policy("acckv", budget=0.5, merge="none", gate="none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("thinker")
    reference_thinker(CONFIG, 0).save_pretrained(path)
    return path


def answers(folder, prompts, rows=None):
    """Logits of the first prompts, and of the steps after them on the pruned cache; `rows` divides the prompts."""
    with reading(folder) as section:
        config, source = open_thinker(folder, section)
    ours = Ours.of(config, source.load(jnp.dtype(jnp.float32))[1])
    cases = [random_case(np.random.default_rng(seed), CONFIG, interleaved=seed == 0) for seed in range(prompts)]
    batch = padded([embedded(ours, case)[1] for case in cases], LENGTH)
    tokens = np.random.default_rng(0).integers(0, 40, (prompts, STEPS)).astype(np.int32)
    if rows is not None:
        specs = [PartitionSpec(rows), PartitionSpec(None, rows)]
        batch = jax.device_put(batch, jax.tree.map(lambda x: specs[x.ndim == 3 and len(x) == 3], batch))
        tokens = jax.device_put(tokens, specs[0])
    options = {"decoder": ours.decoder, "policy": POLICY}
    return np.asarray(logits_through_cache(ours.params["decoder"], batch.arguments(), tokens, **options))


@pytest.fixture(scope="module")
def two(folder):
    """Of two prompts, on one device."""
    return answers(folder, 2)


@pytest.fixture(scope="module")
def one(folder):
    return answers(folder, 1)


@pytest.mark.parametrize("any_mesh", quick_first(("explicit", "auto")), indirect=True)
def test_equals_one_device(two, any_mesh, folder):
    np.testing.assert_allclose(answers(folder, 2, "data"), two, **FP32)


@pytest.mark.complete
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_one_question_on_a_mesh(kind, one, folder):
    """A batch of one row, which no axis divides, beside parameters that are divided over two axes."""
    with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(kind,) * 3)):
        np.testing.assert_allclose(answers(folder, 1), one, **FP32)
