"""Which parameters are read and which are written, and as what matrices."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mergenet_jax import paths
from mergenet_jax.config import MergeConfig
from mergenet_jax.low_rank import Factored
from mergenet_jax.renamed import renamed
from mergenet_jax.selection import select
from mergenet_jax.views import Layout, to_kernel, to_matrix

Matrices = list[Float[Array, "U m n"]]
"""By shape of target and source: all matrices of these shapes, stacked, each with an adapter of its own."""
PLACEBO = 0x504C4143


@dataclasses.dataclass(frozen=True)
class Pair:
    """A kernel that is read and one that is written.

    Attributes:
        source: path of the kernel in the source's parameters, see `mergenet_jax.paths`.
        target: path of the kernel in the target's.
        source_layout: where the source's kernel has its outputs: last ("in_out", Flax) or first ("out_in", torch).
        target_layout: where the target's kernel has them.

    Example:
        >>> mn.Pair("classifier/kernel", "blocks/15/project/conv/kernel").source_layout
        'in_out'
    """

    source: str
    target: str
    source_layout: Layout = "in_out"
    target_layout: Layout = "in_out"


@renamed(start_pairs="init_pairs", starting="copied_pairs")
@dataclasses.dataclass(frozen=True)
class Transfer:
    """Knowledge that goes from one model to another, or from some layers of a model to others.

    Attributes:
        source: name of the model that is read.
        target: name of the model that is written.
        pairs: of kernels. All of them are read before any is written.
        config: options.
        optimizer: of the adapters, in place of the AdamW that `config` describes.
        init_pairs: kernels that start as the source's where `config.init_from_source` is set; none for `pairs`.

    Example:
        >>> mn.Transfer("teacher", "student", (mn.Pair("head", "head"),)).name
        'teacher->student'
    """

    source: str
    target: str
    pairs: tuple[Pair, ...]
    config: MergeConfig = MergeConfig()
    optimizer: optax.GradientTransformation | None = None
    init_pairs: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        """Checks the pairs.

        Raises:
            ValueError: if they are no tuples of `Pair`.
        """
        for name in ("pairs", "init_pairs"):
            pairs = getattr(self, name)
            if not isinstance(pairs, (tuple, list)) or not all(isinstance(pair, Pair) for pair in pairs):
                raise ValueError(f"{name} of a transfer must be a tuple of Pair, not {pairs!r}.")

    @property
    def name(self) -> str:
        """How metrics call it."""
        return f"{self.source}->{self.target}"

    @property
    def copied_pairs(self) -> tuple[Pair, ...]:
        """The kernels that start as the source's."""
        return (self.init_pairs or self.pairs) if self.config.init_from_source else ()


def read(transfer: Transfer, params: Mapping[str, Any], key: Array) -> tuple[Matrices, Matrices]:
    """The matrices that are written and those that are read.

    Args:
        transfer: which.
        params: by name of the model.
        key: of the noise that a random source consists of, the same at every step.

    Example:
        >>> targets, sources = mn.read(transfers[0], params, jax.random.key(0))
        >>> targets[0].shape, sources[0].shape
        ((1, 3, 4), (1, 3, 6))
    """
    targets, sources = _units(transfer, params)
    sources = _seen(transfer, sources, key)
    groups = _groups(targets, sources)
    return [_stack(targets, group) for group in groups], [_stack(sources, group) for group in groups]


def init_from_source(transfer: Transfer, params: Mapping[str, Any], target: Any, key: Array) -> Any:
    """The target's parameters before training, with the kernels that start as the source's.

    Args:
        transfer: which.
        params: by name of the model; what sources are read from.
        target: the target's parameters so far.
        key: see `read`.
    """
    if not transfer.copied_pairs:
        return target
    leaves: dict[str, Any] = {}
    kernels = [paths.get(params[transfer.source], pair.source) for pair in transfer.copied_pairs]
    matrices = [
        to_matrix(kernel, pair.source_layout) for kernel, pair in zip(kernels, transfer.copied_pairs, strict=True)
    ]
    for pair, theirs, seen in zip(transfer.copied_pairs, kernels, _seen(transfer, matrices, key), strict=True):
        ours = paths.get(target, pair.target)
        kernel = to_kernel(seen, theirs.shape, pair.source_layout)
        leaves[pair.target] = select(ours, kernel, pair.target_layout, pair.source_layout)
    return paths.replace(target, leaves)


def write(transfer: Transfer, params: Mapping[str, Any], new: Matrices) -> Any:
    """The target's parameters with `new` in the places that `read` took the targets from."""
    groups = _groups(*_units(transfer, params))
    flat = {unit: matrices[i] for group, matrices in zip(groups, new, strict=True) for i, unit in enumerate(group)}
    units = iter(sorted(flat))
    leaves: dict[str, Any] = {}
    for pair in transfer.pairs:
        old = paths.get(params[transfer.target], pair.target)
        if isinstance(old, Factored):
            leaves[pair.target] = dataclasses.replace(old, b=flat[next(units)], a=flat[next(units)])
        else:
            leaves[pair.target] = to_kernel(flat[next(units)], old.shape, pair.target_layout)
    return paths.replace(params[transfer.target], leaves)


def written(transfer: Transfer, params: Mapping[str, Any]) -> Matrices:
    """The matrices in the places that are written, of these parameters."""
    targets, sources = _units(transfer, params)
    return [_stack(targets, group) for group in _groups(targets, sources)]


def _units(transfer: Transfer, params: Mapping[str, Any]) -> tuple[list[Array], list[Array]]:
    """Matrices in the order of the pairs; of factors first B, then A."""
    targets: list[Array] = []
    sources: list[Array] = []
    for pair in transfer.pairs:
        sources += _matrices(paths.get(params[transfer.source], pair.source), pair.source_layout)
        targets += _matrices(paths.get(params[transfer.target], pair.target), pair.target_layout)
    return targets, sources


def _seen(transfer: Transfer, sources: list[Array], key: Array) -> list[Array]:
    """The matrices as the adapters see them: placebos replace them."""
    if transfer.config.source == "zero":
        return [jnp.zeros_like(s) for s in sources]
    if transfer.config.source == "random":
        keys = jax.random.split(jax.random.fold_in(key, PLACEBO), len(sources))
        return [jnp.std(s) * jax.random.normal(k, s.shape, s.dtype) for k, s in zip(keys, sources, strict=True)]
    return sources


def _matrices(leaf: Any, layout: Layout) -> list[Array]:
    return [leaf.b, leaf.a] if isinstance(leaf, Factored) else [to_matrix(leaf, layout)]


def _groups(targets: list[Array], sources: list[Array]) -> list[list[int]]:
    """Numbers of the units whose shapes and types agree."""
    groups: dict[Any, list[int]] = {}
    for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
        groups.setdefault((target.shape, source.shape, target.dtype, source.dtype), []).append(i)
    return list(groups.values())


def _stack(units: list[Array], group: list[int]) -> Float[Array, "U m n"]:
    return jnp.stack([units[i] for i in group])
