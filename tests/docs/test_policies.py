"""docs/policies.md: its tables are those of the classes."""

import dataclasses
import re
import shutil

import pytest

import acckv_jax as kv
import models
from models.smolav.params import FOLDER
from tests.docs.pages import ROOT, blocks, run
from tests.small_smolav import small_smolav

PAGE = (ROOT / "docs/policies.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]
POLICIES = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 6}
WRAPPERS = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 4}


def options(thing, known: set[str]) -> list[str]:
    """Options of a policy as the page writes them, but those of every policy that have their usual default."""
    usual = {"budget": 1.0, "evict_every": 0}
    named = {f.name: f.default for f in dataclasses.fields(thing) if f.init and f.name not in known}
    return [
        f"{name}={default}" if default != () else name
        for name, default in named.items()
        if name not in usual or usual[name] != default
    ]


@pytest.mark.parametrize("name", kv.POLICIES)
def test_every_policy_is_in_the_table(name):
    policy, (title, _, reads, listed, source) = kv.POLICIES[name](), POLICIES[name]
    assert title == f"`{type(policy).__name__}`"
    assert bool(policy.queries or policy.needs or policy.recent_queries) == bool(reads)
    if not isinstance(policy, kv.AccKV):
        assert re.findall(r"`([^`]+)`", listed) == options(policy, {"budget"})
    if "arXiv" in source:
        assert len(set(re.findall(r"\d{4}\.\d{5}", source))) == 1
    (rule,) = re.findall(r"none \(the\n.*?\. (.*?)\s+have a rule for that", PAGE, re.DOTALL)
    assert (f"`{name}`" in rule) == policy.can_evict


@pytest.mark.parametrize("name", kv.WRAPPERS)
def test_every_wrapper_is_in_the_table(name):
    title, _, listed = WRAPPERS[name]
    assert title == f"`{kv.WRAPPERS[name].__name__}`"
    assert re.findall(r"`([^`]+)`", listed) == options(kv.WRAPPERS[name], {"inner", "budget", "evict_every"})


def test_nothing_else_is_in_the_tables():
    assert list(POLICIES) == list(kv.POLICIES) and WRAPPERS.keys() == kv.WRAPPERS.keys()


def test_blocks_of_the_library_run():
    run("docs/policies.md", {"kv": kv}, [block for block in blocks("docs/policies.md") if "model" not in block])


@pytest.mark.complete
def test_all_blocks_run(tmp_path, monkeypatch):
    """With a small SmolAV in the place of the whole."""
    monkeypatch.setattr(models, "load", lambda name: small_smolav(), raising=False)
    shutil.copy(FOLDER / "demo" / "demo.mp4", tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    found = run("docs/policies.md", {})
    assert found["first"].policy == kv.KVzip(budget=0.2) and len(found["policy"].shares) > 1
