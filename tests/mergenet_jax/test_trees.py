"""Parameters by path in trees of every kind, kernels as matrices, and factors in a tree."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mergenet_jax import Factored, leaf_names, materialise, paths
from mergenet_jax.low_rank import decompose, draw
from mergenet_jax.views import to_kernel, to_matrix
from tests.tolerances import FP32

KEY = jax.random.key(0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    kernel: jax.Array
    bias: jax.Array


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.Dense(5)(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)])


def trees():
    state = nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param)
    block = Block(jnp.ones((5, 3)), jnp.ones(3))
    return {
        "linen": (LinenNet().init(KEY, jnp.ones((1, 4)))["params"], "head/kernel"),
        "nnx state": (state, "layers/1/kernel"),
        "nnx dict": (nnx.to_pure_dict(state), "layers/1/kernel"),
        "dataclass in a list": ([{"a": jnp.ones(2)}, (block,)], "1/0/kernel"),
    }


@pytest.mark.parametrize("kind", trees())
def test_one_leaf_is_read_and_replaced(kind):
    tree, path = trees()[kind]
    assert path in leaf_names(tree)
    assert paths.get(tree, path).shape == (5, 3)
    for pattern in (path, "*" + path[1:], path[:-3] + "*"):
        changed = paths.replace(tree, {pattern: jnp.full((5, 3), 7.0)})
        assert jax.tree.structure(changed) == jax.tree.structure(tree)
        different = [bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (tree, changed)), strict=True)]
        assert sum(different) == 1 and paths.get(changed, path)[0, 0] == 7
    assert sum(jax.tree.leaves(paths.mask(tree, [path]))) == 1


def test_paths_that_fit_nothing_or_too_much():
    tree = nnx.to_pure_dict(nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param))
    with pytest.raises(ValueError, match=r"no parameter is named 'layers/2/kernel'; names look like .*layers/1/kernel"):
        paths.get(tree, "layers/2/kernel")
    with pytest.raises(ValueError, match=r"names 2 parameters \(layers/0/kernel, layers/1/kernel\); write one"):
        paths.get(tree, "*/kernel")
    with pytest.raises(ValueError, match="nothing: there is none"):
        paths.get({}, "a")


@pytest.mark.parametrize("shape", [(4, 6), (3, 3, 4, 6), (5, 4, 6)])
def test_matrices_have_outputs_as_rows(shape):
    kernel = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    matrix = to_matrix(kernel, "in_out")
    assert matrix.shape == (6, kernel.size // 6)
    np.testing.assert_array_equal(matrix[2].reshape(4, -1), kernel[..., 2].reshape(-1, 4).T)
    np.testing.assert_array_equal(to_kernel(matrix, shape, "in_out"), kernel)
    torch_like = jnp.moveaxis(jnp.moveaxis(kernel, -1, 0), -1, 1)  # OIHW holds the same matrix
    np.testing.assert_array_equal(to_matrix(torch_like, "out_in"), matrix)
    np.testing.assert_array_equal(to_kernel(matrix, torch_like.shape, "out_in"), torch_like)


def test_factors():
    kernel = jax.random.normal(KEY, (3, 3, 4, 6))
    whole = decompose(kernel, 6, "in_out")
    np.testing.assert_allclose(whole.kernel(), kernel, **FP32)
    low = decompose(kernel, 2, "in_out")
    singular = np.linalg.svd(np.asarray(to_matrix(kernel, "in_out")), compute_uv=False)
    error = np.linalg.norm(np.asarray(low.kernel() - kernel))
    assert error == pytest.approx(np.linalg.norm(singular[2:]), rel=1e-4)  # Eckart-Young
    fresh = draw(KEY, jax.random.normal(KEY, (300, 200)) * 0.07, 16, "in_out")
    assert float(jnp.std(fresh.kernel())) == pytest.approx(0.07, rel=0.1)
    tree = {"a": low, "b": jnp.ones(2)}
    assert leaf_names(tree) == ["a", "b"]
    assert isinstance(paths.get(tree, "a"), Factored)
    assert materialise(tree)["a"].shape == kernel.shape
    with pytest.raises(ValueError, match="rank 7 is more than a matrix of 6 x 36 holds; use at most 6"):
        decompose(kernel, 7, "in_out")
