"""Leaves of a pytree by name, whatever it is made of: NNX states, Linen dicts, plain dicts, lists and dataclasses."""

import difflib
import fnmatch
from typing import Any

import jax

from mergenet_jax.low_rank import is_factored

SHOWN = 5
NNX_VALUE = jax.tree_util.GetAttrKey("value")


def leaf_names(tree: Any) -> list[str]:
    """Names of all leaves in order: keys, indices and fields joined by "/"; NNX's closing "value" is left out.

    Factors that stand for a kernel are one leaf.

    Example:
        >>> mn.leaf_names({"blocks": [{"kernel": np.ones((2, 2))}], "head": np.ones(3)})
        ['blocks/0/kernel', 'head']
    """
    names = []
    for path, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_factored)[0]:
        if len(path) > 1 and path[-1] == NNX_VALUE:
            path = path[:-1]
        names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    return names


def find(tree: Any, path: str) -> int:
    """Number of the one leaf that a path names.

    Args:
        tree: any pytree.
        path: a leaf's name, or a pattern with ``*`` that matches one.

    Raises:
        ValueError: if it matches no leaf, or several.
    """
    names = leaf_names(tree)
    found = [i for i, name in enumerate(names) if name == path]
    found = found or [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, path)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(names[i] for i in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(f"the path {path!r} names {len(found)} parameters ({shown}{more}); write one of them in full.")
    near = difflib.get_close_matches(path, names, SHOWN, 0.4) or names[:SHOWN]
    raise ValueError(f"no parameter is named {path!r}; names look like {', '.join(near) or 'nothing: there is none'}.")


def get(tree: Any, path: str) -> Any:
    """The leaf that a path names (errors as `find`)."""
    return jax.tree.leaves(tree, is_leaf=is_factored)[find(tree, path)]


def replace(tree: Any, leaves: dict[str, Any]) -> Any:
    """The tree with other leaves in the named places (errors as `find`)."""
    old, structure = jax.tree.flatten(tree, is_leaf=is_factored)
    for path, leaf in leaves.items():
        old[find(tree, path)] = leaf
    return jax.tree.unflatten(structure, old)


def mask(tree: Any, paths: list[str]) -> Any:
    """A tree of booleans: which arrays belong to the named leaves (errors as `find`)."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_factored)
    named = {find(tree, path) for path in paths}
    flags = [jax.tree.map(lambda _, i=i: i in named, leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, flags)
