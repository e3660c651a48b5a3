"""Attention of SmolLM2 over int8 and int4 keys and values, against the same over its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acckv_jax import Stack
from acckv_jax.attention import attend
from acckv_jax.cache import full_layer
from acckv_jax.wrappers.quantized import QuantizedSlots
from models.decoder import Decoder
from models.layers.init import FastRngs, abstract_params
from models.over_decoder import DecoderStep
from models.smolav.smollm2 import load_smollm2
from models.text.tokenizers import load_smollm2_tokenizer

TEXT = (
    "A kettle stands on the stove, and somebody turns the gas on. While the water warms up, a radio plays a waltz. "
    "Then a door opens, and a dog comes in from the rain. It looks at the cat on the chair, and lies down on the rug. "
) * 3
LARGEST = {8: 2e-2, 4: 0.5}
"""Root mean square of a layer's error over that of its outputs, by bits; docs/cache.md says more."""
ELEMENTS = {8: 0.6, 4: 10.0}
"""The largest error of an element over the same; it is of one of the keys' channels."""


@pytest.mark.complete
@pytest.mark.parametrize("bits", LARGEST)
def test_largest_error_of_attention_outputs(bits):
    config, params = load_smollm2()
    step = DecoderStep(abstract_params(lambda: Decoder(config, rngs=FastRngs(0)))[0])
    tokens = np.array([load_smollm2_tokenizer().encode(TEXT).ids], np.int32)
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    valid = index >= 0

    def both(layer, q, k, v, cache, carry, **_):
        plain = full_layer(k, v, index, jnp.zeros_like(index), valid)
        stored = dataclasses.replace(
            plain,
            k=QuantizedSlots.of(plain.keys, plain.valid, 0, per_channel=True, bits=bits),
            v=QuantizedSlots.of(plain.values, plain.valid, 0, per_channel=False, bits=bits),
        )
        outs = [attend(q, one, index)[0] for one in (plain, stored)]
        return outs[0], outs, carry

    @jax.jit
    def run(params):
        nothing = (Stack(None, 0, config.num_hidden_layers),)
        return step(params, tokens, index, nothing, (), both, index[:, -1])[1]

    (found,) = jax.device_get(run(params))
    errors = [np.sqrt(np.mean((stored - plain) ** 2) / np.mean(plain**2)) for plain, stored in zip(*found, strict=True)]
    assert max(errors) <= LARGEST[bits]
    elements = [np.abs(stored - plain).max() / np.sqrt(np.mean(plain**2)) for plain, stored in zip(*found, strict=True)]
    assert max(elements) <= ELEMENTS[bits]
