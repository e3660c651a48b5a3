"""README.md: its quick starts run, its numbers are the measured ones, its links lead somewhere."""

import json
import re
import runpy
import shutil

import numpy as np
import pytest

import acckv_jax as kv
from tests.docs.pages import ROOT, blocks, run

MARKDOWN = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "models").rglob("*.md")]


def block(word: str) -> list[str]:
    """The README's one block that holds a word."""
    (found,) = [code for code in blocks("README.md") if word in code]
    return [found]


def lines(code: list[str]) -> int:
    return len([line for line in code[0].splitlines() if line.strip()])


def test_decoder_quick_start_gives_what_the_script_gives(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tests/acckv_jax"))
    code = block("foreign_llama")
    assert lines(code) <= 12
    found = run("README.md", {}, code)["result"]
    answer = runpy.run_path(str(ROOT / "tests/acckv_jax/quick_start.py"))["answer"](kv.AccKV(budget=0.4))
    np.testing.assert_array_equal(found.tokens, answer.tokens)
    assert found.cache_bytes == answer.cache_bytes
    assert f"prompt={answer.cache_bytes.prompt}" in capsys.readouterr().out


@pytest.mark.complete
def test_clip_quick_start(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "models/smolav/demo/demo.mp4", "clip.mp4")
    code = block("models.load")
    assert lines(code) <= 5
    run("README.md", {}, code)
    truth = json.loads((ROOT / "models/smolav/demo/questions.json").read_text())["questions"]
    (answer,) = [one["answer"] for one in truth if one["question"] in code[0]]
    assert capsys.readouterr().out.strip() == answer


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target
