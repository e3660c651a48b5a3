"""The whole model against upstream's: logits of every position, and what it generates greedily."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import acckv_jax
from acckv_jax import Stack
from models.decoder import Decoder
from models.layers.init import FastRngs, abstract_params
from models.over_decoder import DecoderStep
from models.videollama2.config import VideoLLaMA2Config
from models.videollama2.modeling import VideoLLaMA2
from models.videollama2.params import videollama2_tensors
from tests.models.cached import logits_through_cache
from tests.models.videollama2 import seeded
from tests.models.videollama2.cases import GOLDEN, MODEL, VIDEO_TOKEN, question_ids
from tests.models.videollama2.checkpoints import case_config
from tests.models.videollama2.parameters import seeded_params
from tests.tiers import quick_first, quick_only
from tests.tolerances import LOGITS

EXPECTED = np.load(GOLDEN / "videollama2_model.npz")
SHAPES = range(0, len(MODEL), len(MODEL) // 5)  # one case of each shape


def causal(index, q, k, v, cache, carry, **_):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True), cache, carry


@functools.cache
def programs(config):
    graph, shapes = abstract_params(lambda: VideoLLaMA2(config, rngs=FastRngs(0)))

    @jax.jit
    def embed(params, before, after, frames, banks):
        model = nnx.merge(graph, params)
        text = [model.decoder.embed(part[None])[0] for part in (before, after)]
        media = [model.see(frames), *([] if banks is None else [model.hear(banks)])]
        return jnp.concatenate([text[0], *media, text[1]])[None]

    @jax.jit
    def logits(params, embedded):
        decoder = nnx.merge(graph, params).decoder
        positions = jnp.arange(embedded.shape[1])[None]
        hidden, *_ = decoder(embedded, positions, (Stack(None, 0, config.decoder.num_hidden_layers),), (), causal)
        return decoder.logits(hidden)[0]

    return embed, logits, shapes


def inputs(number, dtype=jnp.float32):
    case = MODEL[number]
    config = case_config(case)
    embed, _, shapes = programs(config)
    params = seeded_params(case.seed, videollama2_tensors(config), shapes)
    params = jax.tree.map(lambda x: jax.device_put(x.astype(dtype)), params)
    side = config.vision.image_size
    frames = seeded.image(case.seed, (config.num_frames, side, side, 3))
    banks = seeded.banks(case.seed, (1, case.frames, case.bands))[0] if case.frames else None
    ids = np.array(question_ids(case), np.int32)
    at = int(np.flatnonzero(ids == VIDEO_TOKEN)[0])
    return config, params, embed(params, ids[:at], ids[at + 1 :], frames, banks)


@pytest.mark.parametrize("number", quick_only(range(len(MODEL)), (0, 1, 20)))  # two draws, and one without sound
def test_logits_equal_upstream(number):
    config, params, embedded = inputs(number)
    ours = programs(config)[1](params, embedded)
    np.testing.assert_allclose(ours, EXPECTED[f"logits_{number}"], **LOGITS)


@pytest.mark.parametrize("number", quick_first(SHAPES))
def test_cached_decoding_equals_upstreams_greedy_tokens(number):
    config, params, embedded = inputs(number)
    step = DecoderStep(abstract_params(lambda: Decoder(config.decoder, rngs=FastRngs(0)))[0])
    tokens = EXPECTED[f"tokens_{number}"]
    arguments = {"inputs": embedded, "prompt": acckv_jax.make_prompt(np.zeros((1, embedded.shape[1]), int))}
    decoder = acckv_jax.Decoder(step, config.decoder.num_hidden_layers, scans=True)
    logits = logits_through_cache(params["decoder"], arguments, tokens[None, :-1].astype(np.int32), decoder=decoder)
    np.testing.assert_array_equal(np.asarray(logits)[:, 0].argmax(-1), tokens)


@pytest.mark.complete
def test_published_size():
    config = VideoLLaMA2Config.videollama2_1_7b_av()
    graph, shapes = abstract_params(lambda: VideoLLaMA2(config, rngs=FastRngs(0)))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}
    assert counts == {  # counted on upstream's classes at this size
        "decoder": 7_615_616_512,
        "vision": 428_225_600,
        "connector": 376_889_248,
        "audio": 90_717_055,
        "audio_projector": 15_604_736,
    }
    frames, banks = jnp.zeros((16, 384, 384, 3)), jnp.zeros((2998, 128))
    seen, heard = jax.eval_shape(
        lambda p, f, b: (nnx.merge(graph, p).see(f), nnx.merge(graph, p).hear(b)), shapes, frames, banks
    )
    assert (seen.shape, heard.shape) == ((1352, 3584), (1496, 3584))
    assert config.video_tokens == 1352


def test_half_precision_is_near():
    exact, half = inputs(0)[2], inputs(0, jnp.bfloat16)[2]
    assert half.dtype == jnp.bfloat16
    error = np.abs(exact - half.astype(jnp.float32))
    assert error.mean() < 2e-2 * np.abs(exact).mean()
