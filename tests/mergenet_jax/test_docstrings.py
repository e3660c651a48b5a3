"""The examples in the library's docstrings run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mergenet_jax as mn

MODULES = [found.name for found in pkgutil.walk_packages(mn.__path__, f"{mn.__name__}.")]
NAMES = {"jax": jax, "jnp": jnp, "np": np}
"""What the examples do not import: everybody who uses the library has imported it."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(module, names):
    found = doctest.DocTestFinder().find(module, extraglobs=NAMES | names)
    return [one for one in found if one.examples]


def run(tests):
    runner, printed = doctest.DocTestRunner(optionflags=FLAGS), []
    for one in tests:
        runner.run(one, out=printed.append, clear_globs=False)
    assert runner.tries and not runner.failures, "".join(printed)


@pytest.fixture(scope="module")
def package():
    """The names that the package's own example leaves behind, which the others continue."""
    (own,) = (one for one in examples(mn, {}) if one.name == mn.__name__)
    run([own])
    made = ("mn", "optax", "learners", "transfers", "state", "batches")
    # The state was donated, and with it the parameters that it was made of.
    fresh = {"teacher": {"head": np.ones((6, 3), np.float32)}, "student": {"head": np.ones((4, 3), np.float32)}}
    return {name: own.globs[name] for name in made} | {"params": fresh}


@pytest.mark.parametrize("module", [n for n in MODULES if examples(importlib.import_module(n), {})])
def test_examples(module, package):
    run(examples(importlib.import_module(module), package))


def test_public_names_have_an_example():
    things = {name: getattr(mn, name) for name in mn.__all__}
    explained = {name: thing for name, thing in things.items() if inspect.isclass(thing) or inspect.isroutine(thing)}
    assert len(explained) > 20
    assert [name for name, thing in explained.items() if ">>> " not in (thing.__doc__ or "")] == []
