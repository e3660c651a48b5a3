"""The language model as training runs it equals the shared decoder, and packed questions do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from acckv_jax import Stack
from models.decoder import Decoder
from models.layers.init import init_params
from models.smolav.config import SmolAVConfig
from models.smolav.lora import init_lora, merge_lora
from tests.tolerances import FP32
from train.smolav import language_model
from train.smolav.losses import packed_mask

CONFIG = SmolAVConfig.tiny()
SCALE = 0.7


def _masked_attention(mask: jax.Array):
    def attend(
        _: int, q: jax.Array, k: jax.Array, v: jax.Array, cache: None, carry: tuple, **given: jax.Array
    ) -> tuple[jax.Array, None, tuple]:
        repeats = q.shape[2] // k.shape[2]
        k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights, v), cache, carry

    return attend


def _inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, positions and segments: five tokens of media, two questions of three and two, then padding."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(2, 12, CONFIG.decoder.hidden_size)).astype(np.float32)
    segment = np.array([[0] * 5 + [1] * 3 + [2] * 2 + [-1] * 2] * 2, np.int32)
    positions = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 0, 0]] * 2, np.int32)
    return embeddings, positions, segment


def _parameters():
    graph, params = init_params(lambda: Decoder(CONFIG.decoder, rngs=nnx.Rngs(0)))
    lora = jax.tree.map(lambda x: x + 0.05, init_lora(jax.random.key(1), CONFIG.decoder, CONFIG.lora_rank))
    return graph, params, lora


def _train_forward(params: dict, lora: dict, dtype: jnp.dtype, inputs: tuple[np.ndarray, ...]) -> jax.Array:
    embeddings, positions, segment = inputs
    frozen = language_model.freeze(params, dtype)
    mask = packed_mask(jnp.asarray(segment))
    return language_model.forward(
        CONFIG.decoder, frozen, lora, SCALE, jnp.asarray(embeddings), jnp.asarray(positions), mask
    )


def test_float32_equals_the_decoder_with_merged_updates() -> None:
    graph, params, lora = _parameters()
    inputs = _inputs()
    hidden = _train_forward(params, lora, jnp.float32, inputs)
    decoder = nnx.merge(graph, merge_lora(params, lora, SCALE))
    attend = _masked_attention(packed_mask(jnp.asarray(inputs[2])))
    expected, *_ = decoder(jnp.asarray(inputs[0]), jnp.asarray(inputs[1]), (Stack(None, 0, 2),), (), attend)
    real = inputs[2] >= 0
    np.testing.assert_allclose(np.asarray(hidden)[real], np.asarray(expected)[real], **FP32)
    frozen = language_model.freeze(params, jnp.float32)
    np.testing.assert_allclose(language_model.logits(frozen, hidden), decoder.logits(hidden), **FP32)


def test_bfloat16_stays_close() -> None:
    _, params, lora = _parameters()
    exact = _train_forward(params, lora, jnp.float32, _inputs())
    rough = _train_forward(params, lora, jnp.bfloat16, _inputs())
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, rtol=0.05, atol=0.05)


def test_gradients_equal_those_of_the_merged_decoder() -> None:
    graph, params, lora = _parameters()
    embeddings, positions, segment = _inputs()
    mask = packed_mask(jnp.asarray(segment))
    weight = jnp.asarray(np.random.default_rng(1).normal(size=embeddings.shape).astype(np.float32))

    def ours(x: jax.Array, lora: dict) -> jax.Array:
        frozen = language_model.freeze(params, jnp.float32)
        hidden = language_model.forward(CONFIG.decoder, frozen, lora, SCALE, x, jnp.asarray(positions), mask)
        return jnp.sum(jnp.where(segment[..., None] >= 0, hidden * weight, 0.0))

    def reference(x: jax.Array, lora: dict) -> jax.Array:
        layers = params["layers"] | {
            name: {"kernel": params["layers"][name]["kernel"] + SCALE * pair["a"] @ pair["b"]}
            for name, pair in lora.items()
        }
        decoder = nnx.merge(graph, params | {"layers": layers})
        hidden, *_ = decoder(x, jnp.asarray(positions), (Stack(None, 0, 2),), (), _masked_attention(mask))
        return jnp.sum(jnp.where(segment[..., None] >= 0, hidden * weight, 0.0))

    found = jax.jit(jax.grad(ours, (0, 1)))(jnp.asarray(embeddings), lora)
    expected = jax.jit(jax.grad(reference, (0, 1)))(jnp.asarray(embeddings), lora)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_a_packed_question_is_as_if_asked_alone() -> None:
    _, params, lora = _parameters()
    embeddings, positions, segment = _inputs()
    packed = np.asarray(_train_forward(params, lora, jnp.float32, (embeddings, positions, segment)))
    for question in (1, 2):
        chosen = np.flatnonzero((segment[0] == 0) | (segment[0] == question))
        n = len(chosen)
        alone = [np.zeros_like(a) for a in (embeddings, positions, segment)]
        for target, source in zip(alone, (embeddings, positions, segment), strict=True):
            target[:, :n] = source[:, chosen]
        alone[1][:, :n] = np.arange(n)
        alone[2][:, :n] = 0
        alone[2][:, n:] = -1
        found = np.asarray(_train_forward(params, lora, jnp.float32, tuple(alone)))
        np.testing.assert_allclose(packed[:, chosen], found[:, :n], **FP32)
