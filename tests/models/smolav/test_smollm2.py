"""SmolLM2's parameters from the GGUF file; the logits are compared with transformers' in the decoder's tests."""

import jax
import numpy as np
import pytest

from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.hub.weights import fetch
from models.layers.init import FastRngs
from models.readers.gguf import read_gguf_metadata
from models.smolav.smollm2 import halves_from_pairs, llama_config, load_smollm2
from tests.models.parameters import assert_fits


def test_configuration_and_parameters_fit_the_decoder() -> None:
    config, params = load_smollm2()
    assert config == DecoderConfig.smollm2_135m()
    assert_fits(params, lambda: Decoder(config, rngs=FastRngs(0)))
    assert sum(x.size for x in jax.tree.leaves(params)) == 134_515_008


def test_rotation_of_halves_equals_rotation_of_pairs() -> None:
    """Scores of queries and keys are the same, whether neighbours or halves are rotated, after the reordering."""
    heads, head_dim, features = 3, 8, 5
    random = np.random.default_rng(0)
    weights = random.standard_normal((2, heads * head_dim, features))
    x = random.standard_normal((2, features))
    angles = [position / 100 ** (np.arange(head_dim // 2) / (head_dim // 2)) for position in (3, 11)]

    def pairs(h: np.ndarray, angle: np.ndarray) -> np.ndarray:
        a, b = h[:, 0::2], h[:, 1::2]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=1)

    def halves(h: np.ndarray, angle: np.ndarray) -> np.ndarray:
        a, b = np.split(h, 2, axis=1)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=1)

    q, k = (pairs((w @ v).reshape(heads, -1), angle) for w, v, angle in zip(weights, x, angles, strict=True))
    reordered = [halves_from_pairs(w, heads) for w in weights]
    q2, k2 = (halves((w @ v).reshape(heads, -1), angle) for w, v, angle in zip(reordered, x, angles, strict=True))
    np.testing.assert_allclose((q * k).sum(1), (q2 * k2).sum(1), rtol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "qwen2"}, "architecture 'qwen2'; only 'llama'"),
        ({"llama.rope.freq_base": None}, "lacks the key 'llama.rope.freq_base'"),
    ],
)
def test_other_checkpoints(change: dict[str, str | None], message: str) -> None:
    metadata = read_gguf_metadata(fetch("smollm2")) | change
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(UserError, match=message):
        llama_config(metadata, tied=True)
