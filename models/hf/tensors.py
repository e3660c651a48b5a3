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
    """

    path: Path
    order: tuple[int, ...] | None = None
    stored: tuple[int, ...] | None = None


Tensors = dict[str, Tensor]
"""Names in a checkpoint to parameters."""


def linear(name: str, path: Path, *, bias: bool = False) -> Tensors:
    """A dense layer: weight [out, in] to kernel [in, out]."""
    return {f"{name}.weight": Tensor((*path, "kernel"), (1, 0))} | _bias(name, path, bias)


def norm(name: str, path: Path, *, bias: bool = False) -> Tensors:
    """A normalisation: weight to scale."""
    return {f"{name}.weight": Tensor((*path, "scale"))} | _bias(name, path, bias)


def conv(name: str, path: Path, dims: int, *, bias: bool = False) -> Tensors:
    """A convolution over `dims` axes: weight [out, in, *size] to kernel [*size, in, out]."""
    order = (*range(2, dims + 2), 1, 0)
    return {f"{name}.weight": Tensor((*path, "kernel"), order)} | _bias(name, path, bias)


def _bias(name: str, path: Path, bias: bool) -> Tensors:
    return {f"{name}.bias": Tensor((*path, "bias"))} if bias else {}
