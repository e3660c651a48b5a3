"""Initial parameters, dropout, meshes and bad input."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from acckv_jax.sharding import out_spec
from models.bert.config import BertConfig
from models.bert.modeling import TASKS, BertModel
from models.bert.params import load_bert
from models.errors import UserError
from models.hf.config import reading
from models.layers.dropout import dropout
from tests.models.bert.references import batch, reference
from tests.tiers import quick_first
from tests.tolerances import FP32

CONFIG = BertConfig.tiny(num_attention_heads=4, num_hidden_layers=1, initializer_range=0.05)


@functools.cache
def model():
    bert = BertModel(CONFIG, "classification", 3)
    return bert, jax.device_get(jax.jit(bert.init)(jax.random.key(0)))


@jax.jit
def run(params, *inputs):
    return model()[0].apply(params, *inputs)


def test_initial_parameters():
    _, params = model()
    for path, value in flatten_dict(params).items():
        if path[-1] == "scale":
            np.testing.assert_array_equal(value, 1.0)
        elif path[-1] == "bias":
            np.testing.assert_array_equal(value, 0.0)
        else:
            assert abs(float(value.std()) / 0.05 - 1) < 0.3 and abs(float(value.mean())) < 0.02, path
    draws = [value for path, value in flatten_dict(params).items() if path[-1] in ("kernel", "embedding", "positions")]
    assert len({float(value[0, 0]) for value in draws}) == len(draws)  # each parameter has a key of its own


def test_dropout_keeps_the_mean():
    x = jnp.full((200, 100), 2.0)
    out = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert set(np.unique(out)) == {np.float32(0), np.float32(2) / np.float32(0.7)}
    assert abs((out == 0).mean() - 0.3) < 0.015 and abs(out.mean() - 2) < 0.05
    assert (np.corrcoef(out[:, :2].T)[0, 1]) < 0.3
    for rate, key in ((0.3, None), (0.0, jax.random.key(0))):
        np.testing.assert_array_equal(dropout(x, rate, key), x)
    slope = jax.grad(lambda x: dropout(x, 1.0, jax.random.key(0)).sum())(x)
    np.testing.assert_array_equal(slope, 0.0)


def test_keys_decide():
    """No key gives the same result every time, each key another; a row does not depend on its neighbours."""
    _, params = model()
    tokens, mask, types = batch(CONFIG, 4, 8)
    still = run(params, tokens, mask, types)
    np.testing.assert_array_equal(still, run(params, tokens, mask, types, None))
    first, second = (run(params, tokens, mask, types, jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(first, run(params, tokens, mask, types, jax.random.key(1)))
    assert all(np.abs(a - b).max() > 1e-3 for a, b in ((still, first), (first, second)))
    hidden = np.where(mask, tokens, (tokens + 5) % CONFIG.vocab_size)
    assert (hidden != tokens).any()
    np.testing.assert_array_equal(still, run(params, hidden, mask, types))  # what padding holds does not matter
    nothing = run(params, tokens, np.zeros_like(mask), types)
    assert np.isfinite(nothing).all()


def test_several_seeds_at_once():
    """Parameters with a leading axis, and a key for each."""
    bert, params = model()
    inputs = batch(CONFIG, 4, 8)
    both = jax.tree.map(lambda x: np.stack([x, 2 * x]), params)
    keys = jax.random.split(jax.random.key(1))
    found = jax.jit(jax.vmap(lambda params, key: bert.apply(params, *inputs, key)))(both, keys)
    for each, own in enumerate(keys):
        alone = run(jax.tree.map(lambda x, each=each: x[each], both), *inputs, own)
        np.testing.assert_allclose(found[each], alone, **FP32)


def test_half_precision():
    _, params = model()
    inputs = batch(CONFIG, 4, 8)
    half = run(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), *inputs, jax.random.key(0))
    assert half.dtype == jnp.bfloat16
    whole = run(params, *inputs, jax.random.key(0))
    np.testing.assert_allclose(half.astype(jnp.float32), whole, rtol=2e-2, atol=2e-2)


@jax.jit
def gradients(params, inputs, key):
    bert, _ = model()
    return jax.value_and_grad(lambda params: jnp.mean(jnp.square(bert.apply(params, *inputs, key))))(params)


@pytest.fixture(scope="module")
def expected():
    """Loss and gradients without a mesh."""
    _, params = model()
    return jax.tree.map(np.asarray, gradients(params, batch(CONFIG, 4, 8), jax.random.key(3)))


@pytest.mark.parametrize("any_mesh", quick_first(("explicit", "auto")), indirect=True)
def test_training_on_a_mesh(any_mesh, expected):
    """Rows on `data`, heads and MLP on `tensor`: the same loss and gradients, with the same values dropped."""
    _, params = model()
    inputs = batch(CONFIG, 4, 8)
    inputs = jax.device_put(inputs, P("data"))
    params = jax.device_put(params, P())
    found = gradients(params, inputs, jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), found, expected)


@pytest.mark.parametrize("any_mesh", quick_first(("explicit", "auto", "none")), indirect=True)
def test_loading_on_a_mesh(any_mesh, tmp_path):
    """A pretrained encoder with a fresh head: as without a mesh, wherever the parameters lie."""
    reference(CONFIG, "encoder", add_pooling_layer=False).save_pretrained(tmp_path)
    ours, params = load_bert(tmp_path, "classification", 3, key=jax.random.key(0))
    kernel, head = params["encoder"]["layers"][0]["attn"]["q"]["kernel"], params["head"]["kernel"]
    if any_mesh is not None:
        assert kernel.sharding.spec == P(None, "tensor") and len(head.sharding.device_set) == 8
    fresh = model()[1]["head"]["kernel"]
    np.testing.assert_allclose(np.asarray(head), np.asarray(fresh), **FP32)
    tokens, mask, types = jax.device_put(batch(CONFIG, 4, 8), None if any_mesh is None else P("data"))
    out = jax.jit(ours.apply)(params, tokens, mask, types)
    if out_spec("data") is not None:
        assert jax.typeof(out).sharding.spec[0] == "data"


@pytest.mark.parametrize("task", TASKS)
def test_heads_that_a_mesh_cannot_divide(task):
    """Of two heads on four devices; the same model had been used without a mesh before."""
    bert = BertModel(BertConfig.tiny(num_hidden_layers=1), task)
    inputs = batch(bert.config, 4, 8)
    params, key = bert.shapes(), jax.random.key(0)
    alone = jax.eval_shape(bert.apply, params, *inputs, key)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        divided = jax.eval_shape(bert.apply, params, *jax.device_put(inputs, P("data")), key)
    assert jax.tree.map(jnp.shape, divided) == jax.tree.map(jnp.shape, alone)
    assert all(leaf.sharding.spec[0] == "data" for leaf in jax.tree.leaves(divided))


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (((2, 33), (2, 33)), r"tokens \[B, T\] with T from 1 to 32, not \(2, 33\); truncate"),
        (((2, 0), (2, 0)), r"with T from 1 to 32, not \(2, 0\)"),
        (((8,), (8,)), r"with T from 1 to 32, not \(8,\)"),
        (((2, 8), (2, 7)), r"The mask must have the shape of the tokens, \(2, 8\), not \(2, 7\)"),
        (((2, 8), (2, 8), (1, 8)), r"The token_types must have the shape of the tokens, \(2, 8\), not \(1, 8\)"),
    ],
)
def test_shapes_that_do_not_fit(shapes, sentence):
    bert, params = model()
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(bert.apply, params, *(jnp.zeros(shape, jnp.int32) for shape in shapes))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: BertModel(CONFIG, "regression"), "no task 'regression'; take one of encoder, classification"),
        (lambda: BertModel(CONFIG, "classification", 0), "at least one class, not 0"),
        (lambda: BertConfig.tiny(num_attention_heads=3), "hidden size 16 must be a multiple of the 3 heads"),
        (lambda: BertConfig.tiny(hidden_dropout_prob=1.5), "hidden_dropout_prob is 1.5, but must be a probability"),
        (lambda: BertConfig.tiny("distilbert", type_vocab_size=2), "A distilbert cannot have type_vocab_size 2"),
        (lambda: BertConfig.tiny(type_vocab_size=0), "A bert cannot have type_vocab_size 0"),
        (lambda: BertConfig.tiny("distilbert", layer_norm_eps=1e-5).to_hf(), "no layer_norm_eps but 1e-12, not 1e-05"),
    ],
)
def test_bad_settings(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("bert", {"hidden_size": None, "vocab_size": "96"}, "vocab_size must be of type int.*|hidden_size is missing"),
        ("bert", {"num_attention_heads": 0}, "num_attention_heads must be at least 1, not 0[.]$"),
        ("bert", {"num_attention_heads": 5}, "multiple of the 5 heads"),
        ("bert", {"hidden_act": "relu"}, "hidden_act is 'relu', but only 'gelu' is supported"),
        (
            "bert",
            {"hidden_act": None, "hidden_dropout_prob": None},
            "hidden_act is missing; hidden_dropout_prob is mis",
        ),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key', but only"),
        ("bert", {"is_decoder": True}, "is_decoder is True, but only False"),
        ("bert", {"initializer_range": None}, "cannot be used: initializer_range is missing[.]$"),
        ("bert", {"model_type": "roberta"}, "'roberta', which is not supported; supported are bert, distilbert"),
        ("distilbert", {"dim": None, "n_layers": -1}, "dim is missing; n_layers must be at least 1, not -1[.]$"),
        ("distilbert", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds is True, but only False is supported"),
        ("distilbert", {"activation": "relu", "qa_dropout": None}, "only 'gelu' is supported; qa_dropout is missing"),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path, family, changes, sentence):
    values = BertConfig.tiny(family).to_hf() | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=sentence), reading(tmp_path) as section:
        BertConfig.from_hf(section)


def test_keys_that_say_something_by_their_absence(tmp_path):
    config = BertConfig.tiny(hidden_dropout_prob=0.25)
    values = config.to_hf()
    del values["classifier_dropout"], values["layer_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with reading(tmp_path) as section:
        assert BertConfig.from_hf(section) == dataclasses.replace(config, classifier_dropout=0.25)
