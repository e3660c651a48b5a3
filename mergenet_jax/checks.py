"""Checks of a setup before anything is compiled."""

from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

from mergenet_jax import paths
from mergenet_jax.attention import head_width
from mergenet_jax.low_rank import Factored, check_rank, is_factored
from mergenet_jax.selection import spatial
from mergenet_jax.transfer import Pair, Transfer
from mergenet_jax.views import Layout, matrix_shape


def check_setup(
    learners: Mapping[str, Any],
    transfers: tuple[Transfer, ...],
    params: Mapping[str, Any],
    states: Mapping[str, Any],
) -> None:
    """Checks that models, transfers, parameters and what models carry on fit.

    Raises:
        ValueError: naming what does not fit and what to do.
    """
    if learners.keys() != params.keys():
        raise ValueError(f"there are parameters of {_list(params)}, but learners are {_list(learners)}; name the same.")
    if unknown := sorted(states.keys() - params.keys()):
        raise ValueError(f"there are states of {_list(unknown)}, but learners are {_list(learners)}; name the same.")
    if not isinstance(transfers, (tuple, list)):
        raise ValueError(f"transfers must be a tuple of Transfer, not a {type(transfers).__name__}.")
    _check_sharing({**params, **{f"{name}'s state": state for name, state in states.items()}})
    names = [transfer.name for transfer in transfers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"there are several transfers {twice[0]}; put their pairs into one.")
    seen: dict[tuple[str, int], str] = {}
    for transfer in transfers:
        _check_transfer(transfer, learners, params)
        for pair in transfer.pairs:
            place = transfer.target, paths.find(params[transfer.target], pair.target)
            if place in seen:
                raise ValueError(
                    f"{seen[place]} and {pair.target} of {place[0]} are one parameter; write it once only."
                )
            seen[place] = pair.target


def _list(names: Any) -> str:
    return ", ".join(names) or "nothing"


def _check_transfer(transfer: Transfer, learners: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    for name in (transfer.source, transfer.target):
        if name not in learners:
            raise ValueError(f"transfer {transfer.name} names no model {name!r}; models are {_list(learners)}.")
    if learners[transfer.target] is None:
        raise ValueError(f"transfer {transfer.name} writes {transfer.target!r}, which is frozen; give it a learner.")
    if not transfer.pairs:
        raise ValueError(f"transfer {transfer.name} has no pairs; name at least one pair of kernels.")
    if transfer.init_pairs and not transfer.config.init_from_source:
        raise ValueError(f"transfer {transfer.name} has init_pairs, which need init_from_source=True; set it.")
    for pair in transfer.pairs:
        source = paths.get(params[transfer.source], pair.source)
        target = paths.get(params[transfer.target], pair.target)
        if transfer.source == transfer.target and source is target:
            raise ValueError(f"{pair.source} of {transfer.source} cannot be its own source; name two kernels.")
        shapes = (
            _checked(source, pair.source, pair.source_layout, transfer),
            _checked(target, pair.target, pair.target_layout, transfer),
        )
        rank = transfer.config.rank
        sizes = [rank if transfer.config.encoding != "dense" else size for shape in shapes for size in shape]
        head_width(min(sizes[2:]), min(sizes[:2]), transfer.config.heads)

    copied: list[int] = []
    for pair in transfer.copied_pairs:
        source = paths.get(params[transfer.source], pair.source)
        target = paths.get(params[transfer.target], pair.target)
        _checked(source, pair.source, pair.source_layout, transfer)
        _checked(target, pair.target, pair.target_layout, transfer)
        _check_start(pair, spatial(source.shape, pair.source_layout), spatial(target.shape, pair.target_layout))
        copied.append(paths.find(params[transfer.target], pair.target))
        if len(set(copied)) < len(copied):
            raise ValueError(f"{pair.target} of {transfer.target} is to start as two kernels; name it once.")
        if not _size_is_finite(source):
            raise ValueError(f"{pair.source} of {transfer.source} is not finite, so that nothing can start as it is.")


def _check_start(pair: Pair, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    if source != target:
        raise ValueError(
            f"{pair.target} cannot start as {pair.source}: height and width are {target or 1} and {source or 1}; pair "
            "kernels of one size, or leave init_from_source out."
        )


def _size_is_finite(kernel: Any) -> bool:
    """Whether its root mean square is finite, as far as its values are known here."""
    if isinstance(kernel, (Tracer, jax.ShapeDtypeStruct)) or not getattr(kernel, "is_fully_addressable", True):
        return True
    return bool(jnp.isfinite(jnp.square(kernel.astype(jnp.float32)).mean()))


def _checked(leaf: Any, path: str, layout: Layout, transfer: Transfer) -> tuple[int, int]:
    """The shape of the matrix at a path."""
    if layout not in get_args(Layout):
        raise ValueError(f"the layout of {path} must be one of {', '.join(get_args(Layout))}, not {layout!r}.")
    if is_factored(leaf):
        return leaf.b.shape[0], leaf.a.shape[1]
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(f"{path} is of type {leaf.dtype}; only floating-point kernels can be transferred.")
    try:
        shape = matrix_shape(tuple(leaf.shape), layout)
        if transfer.config.encoding != "dense":
            check_rank(transfer.config.rank, shape)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    return shape


def check_encodings(transfers: tuple[Transfer, ...], params: Mapping[str, Any]) -> None:
    """Checks that transfers agree on how the kernels that they share are encoded.

    Raises:
        ValueError: naming a kernel that one transfer wants in another form than it has.
    """
    for transfer in transfers:
        wanted = None if transfer.config.encoding == "dense" else transfer.config.rank
        for pair in transfer.pairs:
            for name, path in ((transfer.source, pair.source), (transfer.target, pair.target)):
                leaf = paths.get(params[name], path)
                rank = leaf.b.shape[1] if isinstance(leaf, Factored) else None
                if rank != wanted:
                    raise ValueError(
                        f"{path} of {name} is {_form(rank)}, but {transfer.name} wants it {_form(wanted)}; use one "
                        "encoding and rank for it."
                    )


def _form(rank: int | None) -> str:
    return "dense" if rank is None else f"in factors of rank {rank}"


def _check_sharing(params: Mapping[str, Any]) -> None:
    """Two models in one array would be donated twice."""
    owner: dict[int, str] = {}
    for name, tree in params.items():
        for path, leaf in zip(paths.leaf_names(tree), jax.tree.leaves(tree, is_leaf=is_factored), strict=True):
            for array in (leaf.b, leaf.a) if isinstance(leaf, Factored) else (leaf,):
                for buffer in _buffers(array):
                    if buffer in owner:
                        raise ValueError(
                            f"{path} of {name} shares its buffer with {owner[buffer]}; copy one of the models first "
                            "(jax.tree.map(jnp.copy, params))."
                        )
                    owner[buffer] = f"{path} of {name}"


def _buffers(array: Any) -> list[int]:
    """Addresses of an array's parts on this process's devices; none while tracing."""
    if not isinstance(array, jax.Array) or isinstance(array, Tracer):
        return []
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards if shard.data.size]
