"""CHANGELOG.md: the new names exist, and old ones answer with a sentence."""

import importlib
import pkgutil
import re
import tomllib

import pytest

import acckv_jax as kv
from tests.docs.pages import ROOT

CHANGES = (ROOT / "CHANGELOG.md").read_text()
TABLE = re.findall(r"^\| [^|]+ \| ([^|]+) \|$", CHANGES, re.MULTILINE)
NAMES = sorted(
    {name for new in TABLE for name in re.findall(r"`((?:acckv_jax|mergenet_jax|models|eval|train)\.[\w.]+)", new)}
)
COMMANDS = sorted({command for new in TABLE for command in re.findall(r"python -m ([\w.]+)", new)})


@pytest.mark.parametrize("name", NAMES)
def test_new_names_exist(name):
    pkgutil.resolve_name(name)


@pytest.mark.parametrize("command", COMMANDS)
def test_new_commands_exist(command):
    found = importlib.util.find_spec(command)
    assert found is not None
    if found.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{command}.__main__") is not None


def test_the_version_is_the_newest_one():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^## (\S+)", CHANGES, re.MULTILINE)[0] == version


def test_old_names_answer_with_a_sentence():
    with pytest.raises(ImportError, match=r"every_n_steps is EvictEvery\(policy, steps\) since version 0\.2"):
        from acckv_jax import every_n_steps  # noqa: F401
    with pytest.raises(ImportError, match="EvictEvery"):
        _ = kv.every_n_steps
    assert not hasattr(kv, "never_there")


@pytest.mark.parametrize("name", ["h2o", "protected(h2o)"])
def test_old_options_answer_with_a_sentence(name):
    with pytest.raises(ValueError, match="every is evict_every since version 0.2"):
        kv.make_policy(name, every=4)
