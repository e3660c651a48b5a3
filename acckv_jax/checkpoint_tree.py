"""What the arrays of a saved cache make up: the library's dataclasses with their static fields, as JSON."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, Sharding

from acckv_jax.cache import CacheBytes, KVCache, LayerCache
from acckv_jax.decoding import DecodeState
from acckv_jax.generate import Generation
from acckv_jax.queries import QuerySet
from acckv_jax.scored import Scored
from acckv_jax.sharding import ShardingRules, dividing, head_axis, mesh_spec
from acckv_jax.wrappers.quantized import QuantizedSlots

CLASSES = {
    kind.__name__: kind
    for kind in (KVCache, LayerCache, QuantizedSlots, DecodeState, Scored, QuerySet, Generation, CacheBytes)
}
"""All that is ever built from a file. A change of their fields is another `checkpoint.FORMAT`."""
AXES = {
    **dict.fromkeys(("k", "v", "codes", "scale", "zero", "free"), "BKSH"),
    **dict.fromkeys(("index", "modality", "valid", "multiplicity", "mass", "sums"), "BKS"),
    **dict.fromkeys(("budget", "finite", "length", "delta", "token", "active"), "B"),
    "recent_queries": "BNTH",
    "hidden_states": "BSD",
    "unrotated_q": "BSNH",
    "output_weights": "NHD",
}
"""Axes of an array by its name; stacks have one more in front. Arrays of other names are whole on every device."""

Arrays = dict[str, jax.Array | np.ndarray]


def described(value: Any, arrays: Arrays, name: str = "") -> Any:
    """JSON that `rebuilt` makes `value` of again; its arrays are put into `arrays`, by dotted names.

    Each container is an object of one entry, its kind: `{"tuple": [...]}`, `{"KVCache": {...}}`, `{"array": {...}}`.

    Raises:
        ValueError: if there is something else in it, an array was donated, or is being traced.
    """
    if isinstance(value, jax.Array | np.ndarray):
        return {"array": _described_array(value, arrays, name)}
    kind = type(value).__name__
    if CLASSES.get(kind) is type(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {kind: {key: described(part, arrays, _inside(name, key)) for key, part in fields.items()}}
    if isinstance(value, dict):
        return {"dict": {key: described(part, arrays, _inside(name, key)) for key, part in value.items()}}
    if isinstance(value, tuple | list):
        return {kind: [described(part, arrays, _inside(name, i)) for i, part in enumerate(value)]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name} is a {kind}, which save_cache cannot store: it stores {', '.join(CLASSES)} and arrays.")


def _inside(name: str, key: str | int) -> str:
    return f"{name}.{key}" if name else str(key)


def _described_array(value: jax.Array | np.ndarray, arrays: Arrays, name: str) -> dict[str, Any]:
    about: dict[str, Any] = {"on_host": isinstance(value, np.ndarray)}
    if isinstance(value, Tracer):
        raise ValueError("save_cache writes files: call it outside jit.")
    if isinstance(value, jax.Array):
        if value.is_deleted():
            raise ValueError(f"{name} was donated to another function: save the state that the function returned.")
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            about["key"] = str(jax.random.key_impl(value))
            value = jax.random.key_data(value)
        if jax.process_count() > 1 and value.is_fully_addressable:
            value = np.asarray(value)  # each process has its own, all are equal, and Orbax lets one of them write
    arrays[name] = value
    return about | {"shape": list(value.shape), "dtype": str(value.dtype)}


def shapes(node: Any, name: str = "") -> Iterator[tuple[str, jax.ShapeDtypeStruct]]:
    """Names, shapes and types of all arrays in what `described` returned."""
    if not isinstance(node, dict):
        return
    ((kind, content),) = node.items()
    if kind == "array":
        yield name, jax.ShapeDtypeStruct(tuple(content["shape"]), jnp.dtype(content["dtype"]))
        return
    for key, part in _parts(content):
        yield from shapes(part, _inside(name, key))


def rebuilt(node: Any, arrays: dict[str, jax.Array], name: str = "") -> Any:
    """The value that `described` described."""
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "array":
        if content["on_host"]:
            return np.asarray(arrays[name])
        key = content.get("key")
        return jax.random.wrap_key_data(arrays[name], impl=key) if key else arrays[name]
    parts = {key: rebuilt(part, arrays, _inside(name, key)) for key, part in _parts(content)}
    if isinstance(content, list):
        return tuple(parts.values()) if kind == "tuple" else list(parts.values())
    return parts if kind == "dict" else CLASSES[kind](**parts)


def _parts(content: list[Any] | dict[str, Any]) -> Any:
    return enumerate(content) if isinstance(content, list) else content.items()


def placement(kv_heads: int, rules: ShardingRules) -> Callable[[str, tuple[int, ...]], Sharding]:
    """Where an array of a name and shape belongs: on the current mesh, else on the default device.

    Raises:
        ValueError: if there are several processes and no mesh, or inside jit.
    """
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError as error:
        raise ValueError("load_cache reads files: call it outside jit.") from error
    if mesh.empty:
        if jax.process_count() > 1:
            raise ValueError("several processes load a cache onto one mesh of all their devices: call jax.set_mesh.")
        device = jnp.zeros(()).sharding
        return lambda name, shape: device
    heads = head_axis(rules, kv_heads)

    def place(name: str, shape: tuple[int, ...]) -> Sharding:
        own = next(part for part in reversed(name.split(".")) if not part.isdigit())
        letters = AXES.get(own, "").rjust(len(shape))
        sizes = dict(zip(letters, shape, strict=True))
        over = {"B": dividing(rules.batch, sizes.get("B", 1)), "K": heads, "N": heads}
        return NamedSharding(mesh, mesh_spec(*map(over.get, letters)))

    return place
