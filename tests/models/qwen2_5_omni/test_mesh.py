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
from tests.models.qwen2_5_omni.thinkers import Ours, embedded, random_case, reference_thinker
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


def answers(folder, mesh):
    """Logits of two prompts, and of the steps after them on the pruned cache."""
    with reading(folder) as section:
        config, source = open_thinker(folder, section)
    _, params = source.load(jnp.dtype(jnp.float32))
    ours = Ours.of(config, params)
    cases = [random_case(np.random.default_rng(seed), CONFIG, interleaved=seed == 0) for seed in range(2)]
    batch = padded([embedded(ours, case)[1] for case in cases], LENGTH)
    if mesh is not None:
        rows = [PartitionSpec("data"), PartitionSpec(None, "data")]
        batch = jax.device_put(batch, jax.tree.map(lambda x: rows[x.ndim == 3 and len(x) == 3], batch))
    run = kv.jitted.prefill
    options = {"policy": POLICY, "reserved_slots": STEPS}
    logits, cache = run(ours.decoder, params["decoder"], **batch.arguments(), **options)
    step = jax.jit(kv.decode_step, static_argnames=("decoder", "policy"))
    seen = [logits]
    for _ in range(STEPS):
        token = logits.argmax(-1)
        logits, cache = step(ours.decoder, params["decoder"], token, cache, POLICY, token >= 0)
        seen.append(logits)
    return np.stack(seen)


@pytest.fixture(scope="module")
def expected(folder):
    return answers(folder, None)


@pytest.mark.parametrize("any_mesh", ["explicit", "auto"], indirect=True)
def test_equals_one_device(expected, any_mesh, folder):
    np.testing.assert_allclose(answers(folder, any_mesh), expected, **FP32)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_one_question_on_a_mesh(kind, folder):
    """A batch of one row, which no axis divides, beside parameters that are divided over two axes."""

    def answer():
        with reading(folder) as section:
            config, source = open_thinker(folder, section)
        ours = Ours.of(config, source.load(jnp.dtype(jnp.float32))[1])
        batch = padded([embedded(ours, random_case(np.random.default_rng(0), CONFIG, interleaved=True))[1]], LENGTH)
        run = kv.jitted.prefill
        return run(ours.decoder, ours.params["decoder"], **batch.arguments(), policy=POLICY)[0]

    alone = answer()
    with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(kind,) * 3)):
        np.testing.assert_allclose(answer(), alone, **FP32)
