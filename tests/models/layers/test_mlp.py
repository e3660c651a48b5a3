"""Feed-forward layers of long prompts, some rows after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acckv_jax.sharding import mesh_spec
from models.layers.mlp import ROWS, in_row_blocks
from tests.tolerances import FP32

wide = jax.jit(lambda x, w: in_row_blocks(lambda rows: jax.nn.silu(rows @ w) @ w.T, x))
W = np.random.default_rng(0).standard_normal((8, 32), np.float32)


@pytest.mark.parametrize("any_mesh", ["explicit", "none"], indirect=True)
def test_rows_come_back_in_their_order(any_mesh):
    x = np.random.default_rng(1).standard_normal((2, 5 * ROWS, 8), np.float32)
    hidden = x @ W
    expected = (hidden / (1 + np.exp(-hidden))) @ W.T
    placed = jnp.asarray(x) if any_mesh is None else jax.device_put(x, mesh_spec("data"))
    found = wide(placed, W)
    np.testing.assert_allclose(found, expected, **FP32)
    assert jax.typeof(found).sharding.spec == jax.typeof(placed).sharding.spec


@pytest.mark.parametrize("tokens", [ROWS, 4 * ROWS, 5 * ROWS + 64])
def test_short_prompts_and_odd_lengths_are_one_block(tokens):
    inner = jax.make_jaxpr(wide)(np.zeros((1, tokens, 8), np.float32), W).jaxpr.eqns[0].params["jaxpr"]
    assert "scan" not in [equation.primitive.name for equation in inner.eqns]
