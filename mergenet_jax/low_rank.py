"""Low-rank factors W = B A as the unit of knowledge (MergeNet, section on parameter re-encoding)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mergenet_jax.views import Layout, matrix_shape, to_kernel, to_matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """Stands in a parameter tree for a kernel W = B A, until `materialise`.

    Attributes:
        b: [m, r].
        a: [r, n].
        shape: of the kernel (static).
        layout: of the kernel (static).

    Example:
        >>> factors = mn.Factored(b=jnp.ones((3, 1)), a=jnp.ones((1, 5)), shape=(5, 3), layout="in_out")
        >>> factors.kernel().shape
        (5, 3)
    """

    b: Float[Array, "m r"]
    a: Float[Array, "r n"]
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    layout: Layout = dataclasses.field(metadata={"static": True})

    def kernel(self) -> Float[Array, "..."]:
        """The kernel that the model sees."""
        return to_kernel(self.b @ self.a, self.shape, self.layout)


def is_factored(x: Any) -> bool:
    """Whether factors stand here for a kernel."""
    return isinstance(x, Factored)


def materialise(params: Any) -> Any:
    """The parameters as the model knows them, with kernels for all factors.

    Example:
        >>> factors = mn.Factored(b=jnp.ones((3, 1)), a=jnp.ones((1, 5)), shape=(5, 3), layout="in_out")
        >>> mn.materialise({"head": factors})["head"].shape
        (5, 3)
    """
    return jax.tree.map(lambda x: x.kernel() if is_factored(x) else x, params, is_leaf=is_factored)


def check_rank(rank: int, shape: tuple[int, int]) -> None:
    """Checks that factors of a rank can hold a matrix.

    Raises:
        ValueError: if the rank is larger than the matrix.
    """
    if rank > min(shape):
        raise ValueError(
            f"rank {rank} is more than a matrix of {shape[0]} x {shape[1]} holds; use at most {min(shape)}."
        )


def draw(key: Array, kernel: Float[Array, "..."], rank: int, layout: Layout) -> Factored:
    """Fresh factors whose product has the spread of a kernel.

    Raises:
        ValueError: if the rank is larger than the matrix.
    """
    m, n = matrix_shape(kernel.shape, layout)
    check_rank(rank, (m, n))
    # b and a of the same spread s: an entry of b a has the variance r s^4.
    spread = jnp.sqrt(jnp.std(kernel) / rank**0.5)
    left, right = jax.random.split(key)
    b = spread * jax.random.normal(left, (m, rank), kernel.dtype)
    return Factored(b, spread * jax.random.normal(right, (rank, n), kernel.dtype), tuple(kernel.shape), layout)


def decompose(kernel: Float[Array, "..."], rank: int, layout: Layout) -> Factored:
    """The best factors of a rank (singular value decomposition), each with the square roots of the singular values.

    Raises:
        ValueError: if the rank is larger than the matrix.
    """
    matrix = to_matrix(kernel, layout)
    check_rank(rank, matrix_shape(kernel.shape, layout))
    u, s, v = jnp.linalg.svd(matrix.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(s[:rank])
    b, a = (u[:, :rank] * root[None]).astype(kernel.dtype), (root[:, None] * v[:rank]).astype(kernel.dtype)
    return Factored(b, a, tuple(kernel.shape), layout)
