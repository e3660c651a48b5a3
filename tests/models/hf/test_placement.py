"""Where parameters go on a mesh, and that a decoder so placed computes what the whole one does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import acckv_jax
from models.decoder import Decoder, DecoderConfig
from models.hf.checkpoint import open_checkpoint
from models.hf.decoder import decoder_tensors
from models.hf.export import save_params
from models.hf.load import load_params
from models.layers.init import FastRngs
from models.over_decoder import DecoderStep
from models.placement import abstract_params_on
from tests.models.parameters import random_params
from tests.tiers import quick_first
from tests.tolerances import FP32

CONFIG = DecoderConfig.tiny(attention_bias=True, tie_word_embeddings=False)


def make():
    return Decoder(CONFIG, rngs=FastRngs(0))


def logits(graph, params, tokens, rows):
    inputs = jax.device_put((tokens, acckv_jax.make_prompt(np.zeros(tokens.shape, int))), rows)
    decoder = acckv_jax.Decoder(DecoderStep(graph), 2, scans=True)
    run = functools.partial(acckv_jax.prefill, decoder, policy=acckv_jax.Full())
    return jax.jit(run)(params, *inputs)[0]


def mesh_of(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Explicit,) * len(axes))


def specs(mesh, config=CONFIG):
    _, placed = abstract_params_on(mesh, lambda: Decoder(config, rngs=FastRngs(0)))
    flat = {".".join(map(str, path)): leaf.sharding.spec for path, leaf in flatten_dict(placed).items()}
    layers = {name.removeprefix("layers."): spec for name, spec in flat.items() if name.startswith("layers.")}
    assert all(spec[:1] in ((), (None,)) for spec in layers.values())  # the layers themselves are never divided
    others = {name: spec for name, spec in flat.items() if not name.startswith("layers.")}
    return others | {name: P(*spec[1:]) for name, spec in layers.items()}


def test_layers_tell_their_axes():
    assert specs(mesh_of(data=2, fsdp=2, tensor=2)) == {
        "tokens.embedding": P("tensor", "fsdp"),
        "attn_norm.scale": P(),
        **{f"{part}.kernel": P("fsdp", "tensor") for part in ("q", "k", "v", "mlp.gate", "mlp.up", "head")},
        **{f"{part}.bias": P("tensor") for part in "qkv"},
        **{f"{part}.kernel": P("tensor", "fsdp") for part in ("o", "mlp.down")},
        "mlp_norm.scale": P(),
        "norm.scale": P(),
    }


def test_only_axes_that_divide():
    odd = DecoderConfig.tiny(vocab_size=99, num_key_value_heads=1, hidden_size=30, intermediate_size=44)
    placed = specs(mesh_of(fsdp=4, tensor=2), odd)
    assert placed["tokens.embedding"] == P(None, None)
    assert placed["q.kernel"] == P(None, "fsdp")  # one KV head: heads are not divided, 30 columns neither
    assert placed["o.kernel"] == P("fsdp", None)
    assert placed["mlp.gate.kernel"] == P(None, "tensor")
    tensor_only = specs(mesh_of(tensor=8))
    assert tensor_only["q.kernel"] == P(None, None) and tensor_only["mlp.up.kernel"] == P(None, "tensor")


@pytest.mark.parametrize("axes", quick_first(({"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8})))
def test_a_decoder_loaded_onto_a_mesh(tmp_path, axes):
    graph, params = random_params(make)
    save_params(tmp_path / "a", params, decoder_tensors(CONFIG), {})
    tokens = jnp.arange(64).reshape(8, 8)
    expected = logits(graph, params, tokens, None)
    mesh = mesh_of(**axes)
    graph, shapes = abstract_params_on(mesh, make)
    loaded = load_params(open_checkpoint(tmp_path / "a"), decoder_tensors(CONFIG), shapes)
    with jax.set_mesh(mesh):
        found = logits(graph, loaded, tokens, P(tuple(axis for axis in ("data", "fsdp") if axis in axes)))
    np.testing.assert_allclose(found, expected, **FP32)
    save_params(tmp_path / "b", loaded, decoder_tensors(CONFIG), {})
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in "ab"]
    assert files[0] == files[1]


def test_the_table_of_embeddings_stays_divided():
    mesh = mesh_of(data=2, tensor=4)
    graph, shapes = abstract_params_on(mesh, make)

    def embed(params, tokens):
        return nnx.merge(graph, params).embed(tokens)

    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape, out_sharding=P()), shapes)
        params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, shapes))
        tokens = jax.device_put(jnp.arange(16).reshape(8, 2) * 5, P("data"))
        compiled = jax.jit(embed).lower(params, tokens).compile()
        embedded = compiled(params, tokens)
    table = np.arange(CONFIG.vocab_size * CONFIG.hidden_size, dtype=np.float32).reshape(CONFIG.vocab_size, -1)
    np.testing.assert_array_equal(embedded, table[np.arange(16).reshape(8, 2) * 5])
    assert "all-gather" not in compiled.as_text() and "all-reduce" in compiled.as_text()
