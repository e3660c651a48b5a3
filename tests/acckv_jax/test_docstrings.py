"""The examples in the library's docstrings run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv

MODULES = [kv.__name__, *(found.name for found in pkgutil.walk_packages(kv.__path__, f"{kv.__name__}."))]
NAMES = {"jax": jax, "jnp": jnp, "np": np}
"""What the examples do not import: everybody who uses the library has imported it."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(module: str) -> list[doctest.DocTest]:
    loaded = importlib.import_module(module)
    found = doctest.DocTestFinder().find(loaded, module, extraglobs=NAMES)
    return [one for one in found if one.examples]


@pytest.mark.parametrize("module", [name for name in MODULES if examples(name)])
def test_examples(module):
    runner, printed = doctest.DocTestRunner(optionflags=FLAGS), []
    for one in examples(module):
        runner.run(one, out=printed.append)
    assert runner.tries and not runner.failures, "".join(printed)


def test_public_names_have_an_example():
    things = {name: getattr(kv, name) for name in kv.__all__}
    explained = {n: x for n, x in things.items() if inspect.isclass(x) or inspect.isroutine(x) or inspect.ismodule(x)}
    assert [name for name, thing in explained.items() if ">>> " not in (thing.__doc__ or "")] == []
