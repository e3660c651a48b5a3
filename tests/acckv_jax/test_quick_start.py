"""The quick start runs as a script and gives what attention without a cache gives."""

import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from tests.acckv_jax.dense import causal, dense_logits
from tests.acckv_jax.foreign_llama import Llama

SCRIPT = pathlib.Path(__file__).with_name("quick_start.py")


@pytest.fixture(scope="module")
def answers():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        answer = runpy.run_path(str(SCRIPT))["answer"]
    return {policy: answer(policy) for policy in (kv.Full(), kv.AccKV(budget=0.4))}


def test_full_cache_equals_dense_attention(answers):
    tokens = answers[kv.Full()].tokens
    model = Llama()
    prompt = np.random.default_rng(0).integers(0, model.vocab, (1, 56))
    # One pass over prompt and answer: row t of the batch asks for the logits that follow token 55 + t.
    whole = jnp.asarray(np.repeat(np.concatenate([prompt, tokens[:, :-1]], axis=1), 16, axis=0))
    rows, length = whole.shape
    mask = causal(rows, length, model.kv_heads)
    params = model.init(jax.random.key(0))
    logits = dense_logits(model, params, whole, 55 + jnp.arange(rows)[None], (mask, mask))[0]
    assert len(set(tokens[0].tolist())) > 3, "an answer of one token repeated would prove little"
    np.testing.assert_array_equal(tokens[0], jnp.argmax(logits, -1))


def test_pruned_cache_is_smaller(answers):
    full, pruned = (found.cache_bytes for found in answers.values())
    assert full.prompt == 2 * 2 * 64 * 4 * 8 * 4  # layers, k and v, bucket, heads, head size, bytes
    assert pruned.prompt * 64 == full.prompt * round(0.4 * 64)


@pytest.mark.complete
@pytest.mark.packaging
def test_runs_as_a_script(tmp_path):
    command = [sys.executable, str(SCRIPT), "h2o", "0.25"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "h2o at 0.25: 8192 of 32768 cache bytes" in done.stdout
