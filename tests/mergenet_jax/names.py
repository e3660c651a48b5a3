"""Upstream's flat tensors to the adapter's parameters and back; one adapter, so a stack of one."""

import numpy as np

from tests.mergenet_jax.cases import Case

BRANCHES = ("x_x", "x_y", "y_x", "y_y")
PARTS = {"fc_q": "q", "fc_k": "k", "fc_v": "v", "fc_output": "out"}
OUTPUTS = {"dense_up": "up", "dense_dowm": "down"}


def layer_names() -> dict[tuple[str, ...], tuple[str, bool]]:
    """Our path within a layer -> upstream's name there, and whether it is transposed."""
    names: dict[tuple[str, ...], tuple[str, bool]] = {}
    for branch in BRANCHES:
        for theirs, ours in PARTS.items():
            names[branch, ours, "kernel"] = f"attention_{branch}.{theirs}.weight", True
            names[branch, ours, "bias"] = f"attention_{branch}.{theirs}.bias", False
        names[branch, "norm", "scale"] = f"attention_{branch}.norm.weight", False
        names[branch, "norm", "bias"] = f"attention_{branch}.norm.bias", False
    for theirs, ours in OUTPUTS.items():
        names[ours, "kernel"] = f"output.{theirs}.parametrizations.weight.original", True
        names[ours, "bias"] = f"output.{theirs}.bias", False
    names["norm", "scale"] = "output.layernorm.weight", False
    names["norm", "bias"] = "output.layernorm.bias", False
    return names


def to_ours(case: Case, tensors: dict[str, np.ndarray]) -> dict:
    """The parameters of `mergenet_jax.init_adapter`."""
    layers: dict = {}
    for path, (name, transposed) in layer_names().items():
        values = [tensors[f"layer.{i}.{name}"] for i in range(case.layers)]
        at = layers
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = np.stack([value.T if transposed else value for value in values]).astype(np.float32)
    return {"layers": layers}


def to_theirs(case: Case, params: dict) -> dict[str, np.ndarray]:
    """Upstream's tensors."""
    tensors = {}
    for path, (name, transposed) in layer_names().items():
        at = params["layers"]
        for key in path:
            at = at[key]
        for i in range(case.layers):
            tensors[f"layer.{i}.{name}"] = np.asarray(at[i]).T if transposed else np.asarray(at[i])
    return tensors


def vectors_to_ours(case: Case, vectors: dict[str, np.ndarray]) -> dict:
    """The vectors of `mergenet_jax.init_adapter`."""

    def stacked(name: str, letter: str) -> np.ndarray:
        at = f"output.{name}.parametrizations.weight.0._{letter}"
        return np.stack([vectors[f"layer.{i}.{at}"] for i in range(case.layers)]).astype(np.float32)

    return {ours: {"u": stacked(theirs, "u"), "v": stacked(theirs, "v")} for theirs, ours in OUTPUTS.items()}
