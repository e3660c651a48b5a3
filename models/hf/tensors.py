"""How the tensors of a checkpoint correspond to our parameters: one to one, up to the order of axes."""

import dataclasses

Path = tuple[str | int, ...]
"""Keys into a nested dict of parameters."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a checkpoint's tensor goes.

    Attributes:
        path: of the parameter.
        order: the checkpoint's axes in our order; None keeps them.
        stored: shape in the checkpoint, if its axes are finer than ours: they are joined before reordering.
        layer: number of the layer, for a parameter that holds those of all layers along its first axis.
    """

    path: Path
    order: tuple[int, ...] | None = None
    stored: tuple[int, ...] | None = None
    layer: int | None = None


Tensors = dict[str, Tensor]
"""Names in a checkpoint to parameters."""


def of_layer(layer: int, tensors: Tensors) -> Tensors:
    """The tensors of one layer whose parameters are stacked with those of others."""
    return {name: dataclasses.replace(tensor, layer=layer) for name, tensor in tensors.items()}


def linear(name: str, path: Path, *, bias: bool = False) -> Tensors:
    """A dense layer: weight [out, in] to kernel [in, out]."""
    return {f"{name}.weight": Tensor((*path, "kernel"), (1, 0))} | _bias(name, path, bias)


def norm(name: str, path: Path, *, bias: bool = False) -> Tensors:
    """A normalisation: weight to scale."""
    return {f"{name}.weight": Tensor((*path, "scale"))} | _bias(name, path, bias)


def batch_norm(name: str, path: Path) -> Tensors:
    """A batch normalisation with its running statistics: weight, bias, running_mean and running_var."""
    statistics = {f"{name}.running_{part}": Tensor((*path, part)) for part in ("mean", "var")}
    return norm(name, path, bias=True) | statistics


def conv(name: str, path: Path, dims: int, *, bias: bool = False) -> Tensors:
    """A convolution over `dims` axes: weight [out, in, *size] to kernel [*size, in, out]."""
    order = (*range(2, dims + 2), 1, 0)
    return {f"{name}.weight": Tensor((*path, "kernel"), order)} | _bias(name, path, bias)


def depthwise_conv(name: str, path: Path, features: int, size: int, *, bias: bool = False) -> Tensors:
    """A convolution of each channel by itself: weight [features, 1, size, size] to kernel [size, size, features]."""
    kernel = Tensor((*path, "kernel"), (1, 2, 0), (features, 1, size, size))
    return {f"{name}.weight": kernel} | _bias(name, path, bias)


def _bias(name: str, path: Path, bias: bool) -> Tensors:
    return {f"{name}.bias": Tensor((*path, "bias"))} if bias else {}
