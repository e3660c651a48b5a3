"""Parameters of our modules with the seeded values of a checkpoint's tensors."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from models.hf.load import checkpoint_shape, joined_shape
from models.hf.tensors import Tensors
from models.layers.init import Params
from tests.models.videollama2 import seeded


def seeded_tensors(seed: int, tensors: Tensors, shapes: Params) -> dict[str, np.ndarray]:
    """The checkpoint's tensors by name."""
    flat = flatten_dict(shapes)
    assert flat.keys() == {tensor.path for tensor in tensors.values()}
    return {
        name: seeded.weight(seed, name, checkpoint_shape(tensor, flat[tensor.path].shape))
        for name, tensor in tensors.items()
    }


def seeded_params(seed: int, tensors: Tensors, shapes: Params) -> Params:
    """The same as parameters."""
    flat = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flatten_dict(shapes).items()}
    for name, values in seeded_tensors(seed, tensors, shapes).items():
        tensor, whole = tensors[name], flat[tensors[name].path]
        ours = whole if tensor.layer is None else whole[tensor.layer]
        ours[...] = values.reshape(joined_shape(tensor, ours.shape)).transpose(tensor.order or range(ours.ndim))
    return unflatten_dict(flat)
