"""The cases of mergenet_adapter.npz: their number is their place in the list. NumPy alone.

Tensors bear upstream's names, matrices stand as [out, in].
"""

import dataclasses
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden" / "mergenet_adapter.npz"


@dataclasses.dataclass(frozen=True)
class Case:
    """An adapter from a source matrix [p, q] to a target matrix [m, n].

    `final` scales what the first step aims at, so that its gradients are clipped; `decay` is the weight decay, which
    shows in two steps only where it is far above upstream's.
    """

    target: tuple[int, int]
    source: tuple[int, int]
    layers: int
    heads: int
    seed: int
    final: float = 1.0
    decay: float = 5e-4


CASES = [
    Case((3, 5), (4, 6), 1, 8, 0),
    Case((3, 5), (4, 6), 2, 4, 1, final=100.0, decay=0.5),
    Case((12, 20), (10, 24), 2, 8, 2),
    Case((24, 9), (7, 16), 3, 8, 3, final=30.0),
    Case((6, 40), (30, 11), 3, 4, 4, decay=0.5),
    Case((6, 150), (5, 170), 1, 8, 5),  # rows with rows: heads wider than the floor of 128 over all heads
    Case((130, 7), (200, 9), 2, 8, 6, final=30.0),  # columns with columns likewise
    Case((16, 16), (16, 16), 2, 8, 7, decay=0.5),
    Case((10, 14), (6, 8), 2, 6, 8, final=30.0),  # 6 heads do not divide 128
]
QUICK = (1, 5, 8)
"""Numbers of the cases in the quick tier: several layers, wide heads, heads that do not divide."""
PUBLISHED = Case((160, 960), (100, 2048), 2, 8, 9)
"""The published adapter: MobileNetV2's last projection from ResNet-50's classifier."""


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters that the adapter's output depends on."""
    (m, n), (p, q) = case.target, case.source
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(case.layers):
        for branch, d_q, d_k in (("x_x", n, q), ("x_y", n, p), ("y_x", m, q), ("y_y", m, p)):
            width = case.heads * (max((d_q + d_k) // 2, 128) // case.heads)
            at = f"layer.{layer}.attention_{branch}"
            for name, out, size in (
                ("fc_q", width, d_q),
                ("fc_k", width, d_k),
                ("fc_v", width, d_k),
                ("fc_output", d_q, width),
            ):
                found |= {f"{at}.{name}.weight": (out, size), f"{at}.{name}.bias": (out,)}
            found |= {f"{at}.norm.weight": (d_q,), f"{at}.norm.bias": (d_q,)}
        at = f"layer.{layer}.output"
        for name, out, size in (("dense_up", 2 * n, n), ("dense_dowm", n, 2 * n)):
            found |= {f"{at}.{name}.parametrizations.weight.original": (out, size), f"{at}.{name}.bias": (out,)}
        found |= {f"{at}.layernorm.weight": (n,), f"{at}.layernorm.bias": (n,)}
    return found


def moves(name: str) -> bool:
    """Whether steps of a parameter can be compared.

    The keys' bias shifts all logits of a query alike, so its gradient is rounding error, of which Adam makes steps of
    up to the learning rate. The output does not depend on it.
    """
    return not name.endswith("fc_k.bias")


def vector_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Shapes of the left (u) and right (v) singular vectors of spectral norm, in the order of the stored rows."""
    n = case.target[1]
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(case.layers):
        for name, out, size in (("dense_up", 2 * n, n), ("dense_dowm", n, 2 * n)):
            at = f"layer.{layer}.output.{name}.parametrizations.weight.0"
            found |= {f"{at}._u": (out,), f"{at}._v": (size,)}
    return found


def split_vectors(case: Case, row: np.ndarray) -> dict[str, np.ndarray]:
    """The vectors of spectral norm by name, from a row of `vectors_i`."""
    sizes = [shape[0] for shape in vector_shapes(case).values()]
    return dict(zip(vector_shapes(case), np.split(row, np.cumsum(sizes)[:-1]), strict=True))
