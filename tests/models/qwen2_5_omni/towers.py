"""Random towers of transformers, and ours with the same parameters through a checkpoint on disk."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from flax import nnx

from models.hf.checkpoint import open_checkpoint
from models.hf.load import load_params
from models.hf.tensors import Tensors
from models.layers.init import Params, abstract_params

STRUCTURES = int(os.environ.get("PARITY_CASES", "24")) // 4
"""Random sizes and options, each compiled once and tried with `DRAWS` random weights and inputs."""
DRAWS = 4


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Gives every layer outputs of order 1, and norms and biases that matter."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.ndim > 1:
            parameter.data = noise * parameter[0].numel() ** -0.5
        else:
            scale = name.endswith("weight")
            parameter.data = 0.3 * noise + (1 if scale else 0)


def loaded(reference: torch.nn.Module, tensors: Tensors, make: Callable[[], nnx.Module], folder: Path) -> Params:
    """The reference's parameters, written by `save_pretrained` and read by our loader.

    Args:
        reference: a tower of transformers, which is saved without the prefix that it has in the whole model.
        tensors: of the tower, with that prefix.
        make: builds our tower.
        folder: to write to.
    """
    reference.save_pretrained(folder)
    name = next(iter(tensors.values())).path[0]
    _, shapes = abstract_params(make)
    bare = {tensor.split(".", 1)[1]: where for tensor, where in tensors.items()}
    return load_params(open_checkpoint(folder), bare, {name: shapes})[name]
