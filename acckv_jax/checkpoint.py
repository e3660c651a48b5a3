"""Caches on disk, through Orbax: prune a prompt on one mesh, and answer questions about it on another, or tomorrow.

A saved cache is a folder: `arrays/` as Orbax writes it, and `cache.json`, which says what the arrays make up, whose
cache it is, and what the checksums of all files are.
"""

import dataclasses
import os
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from acckv_jax.cache import KVCache
from acckv_jax.checkpoint_files import check_files, in_first_process, new_folder, read_index
from acckv_jax.checkpoint_tree import Arrays, described, placement, rebuilt, shapes
from acckv_jax.decoding import DecodeState
from acckv_jax.generate import Generation
from acckv_jax.scored import Scored
from acckv_jax.sharding import ShardingRules
from acckv_jax.storage import dense

FORMAT = 1
"""Of the folder: another number whenever an older acckv_jax would read it wrongly, or this one an older folder."""


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """The model that a saved cache belongs to.

    Attributes:
        name: any text, such as a checkpoint's name and revision.
        num_layers: layers.
        kv_heads: KV heads.
        head_dim: their size.

    Example:
        >>> import acckv_jax as kv
        >>> print(kv.ModelIdentity("SmolLM2-135M", num_layers=30, kv_heads=3, head_dim=64))
        'SmolLM2-135M' (layers: 30, KV heads: 3, head size: 64)
    """

    name: str
    num_layers: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        sizes = f"layers: {self.num_layers}, KV heads: {self.kv_heads}, head size: {self.head_dim}"
        return f"{repr(self.name) if self.name else 'a model without a name'} ({sizes})"


def save_cache(
    folder: str | os.PathLike[str],
    cache: KVCache | DecodeState | Scored | Generation,
    *,
    model: ModelIdentity | str | None = None,
) -> None:
    """Writes a cache, or a whole conversation, to a new folder; call it outside jit.

    The folder appears under its name once everything is on disk. Where there are several processes, all of them call
    this, with a folder that they share.

    Args:
        folder: the folder to make, on a file system.
        cache: a `KVCache`; a `DecodeState`, for `decode` to go on from; a `Generation`, for `generate` to follow up; or
            a `Scored` prompt, to be pruned or asked later. It stays as it is.
        model: whose it is, for `load_cache` to check: a name, to which the cache's own sizes are added, or all of it.

    Raises:
        ImportError: if Orbax is not installed.
        ValueError: if the folder exists already or cannot be written; if the cache is something else, was donated, or
            has other sizes than the model.

    Example:
        >>> import tempfile
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> logits, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> state = kv.start_decoding(logits, cache, jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kv.save_cache(f"{folder}/clip", state, model="tiny")
        ...     again = kv.load_cache(f"{folder}/clip", model="tiny")
        >>> again.cache.layers[0].keys.shape, bool(again.token[0] == state.token[0])
        ((1, 2, 48, 16), True)
    """
    orbax = _orbax()
    folder = _on_file_system(folder)
    if not isinstance(cache, KVCache | DecodeState | Scored | Generation):
        kind = type(cache).__name__
        raise ValueError(f"save_cache takes a KVCache, a DecodeState, a Scored or a Generation, and not a {kind}.")
    arrays: Arrays = {}
    index = {
        "format": FORMAT,
        "acckv_jax": _version(),
        "saved": described(cache, arrays),
        "model": dataclasses.asdict(_identity(cache, model)),
    }
    with new_folder(folder, index) as partial, orbax.Checkpointer(orbax.StandardCheckpointHandler()) as checkpointer:
        # Orbax takes no empty arrays, such as the free slots of a quantised cache that has none.
        checkpointer.save(partial / "arrays", {name: x for name, x in arrays.items() if x.size})


def load_cache(
    folder: str | os.PathLike[str],
    *,
    model: ModelIdentity | str | None = None,
    rules: ShardingRules = ShardingRules(),
) -> Any:
    """Reads what `save_cache` wrote; call it outside jit.

    Without a mesh the arrays come to the default device. Under `jax.set_mesh` they are divided over that mesh, however
    they were divided when they were saved: rows over the axes `rules.batch` and heads over `rules.heads`, where these
    are axes of the mesh and divide them. Where there are several processes, all of them call this.

    Args:
        folder: the folder.
        model: whose it must be, by name or in full; by default nothing is checked.
        rules: names of the mesh's axes.

    Returns:
        What was saved, of the same class.

    Raises:
        ImportError: if Orbax is not installed.
        ValueError: if it is no saved cache, or of another format or model, or if a file is damaged.

    Example:
        >>> import tempfile
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> mesh = jax.make_mesh((1, 1), ("rows", "tensor"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kv.save_cache(f"{folder}/clip", cache)
        ...     with jax.set_mesh(mesh):
        ...         on_mesh = kv.load_cache(f"{folder}/clip", rules=kv.ShardingRules(batch="rows"))
        >>> tuple(on_mesh.layers[0].k.sharding.spec)
        ('rows', 'tensor', None, None)
    """
    orbax = _orbax()
    folder = _on_file_system(folder)
    index = read_index(folder, FORMAT)
    owner = ModelIdentity(**index["model"])
    if model is not None and model != (owner if isinstance(model, ModelIdentity) else owner.name):
        wanted = model if isinstance(model, ModelIdentity) else repr(model)
        raise ValueError(f"{folder} holds a cache of {owner}, not of {wanted}.")
    in_first_process(lambda: check_files(folder, index["files"]))
    place = placement(owner.kv_heads, rules)
    wanted = {name: x.update(sharding=place(name, x.shape)) for name, x in shapes(index["saved"])}
    with orbax.Checkpointer(orbax.StandardCheckpointHandler()) as checkpointer:
        arrays = checkpointer.restore(folder / "arrays", {name: x for name, x in wanted.items() if x.size})
    empty = {name: jnp.zeros(x.shape, x.dtype, device=x.sharding) for name, x in wanted.items() if not x.size}
    return rebuilt(index["saved"], arrays | empty)


def _orbax() -> ModuleType:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "caches are saved and loaded by Orbax, which is not installed: pip install 'acckv-jax[checkpoint]'."
        ) from error
    return orbax.checkpoint


def _on_file_system(folder: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(folder):
        raise ValueError(f"{os.fspath(folder)} is no folder on a file system: mount the bucket, or copy from a folder.")
    return Path(folder).absolute()


def _version() -> str:
    try:
        return metadata.version("acckv-jax")
    except metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


def _identity(saved: KVCache | DecodeState | Scored | Generation, model: ModelIdentity | str | None) -> ModelIdentity:
    """The model, with the sizes that the cache has.

    Raises:
        ValueError: if the model is of other sizes.
    """
    holder = saved.state if isinstance(saved, Generation) else saved
    cache = holder if isinstance(holder, KVCache) else holder.cache
    *_, kv_heads, _, head_dim = jax.eval_shape(dense, cache.stacks[0].k).shape
    name = model.name if isinstance(model, ModelIdentity) else model or ""
    actual = ModelIdentity(name, cache.num_layers, kv_heads, head_dim)
    if isinstance(model, ModelIdentity) and model != actual:
        raise ValueError(f"the cache has the sizes of {actual}, not those of {model}.")
    return actual
