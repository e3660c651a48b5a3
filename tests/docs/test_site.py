"""The site: every page and public name is in it, its notebooks ran, and it asks nothing of a network."""

import html
import inspect
import os
import re
import runpy
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import acckv_jax
import mergenet_jax
import models
from tests.docs.commands import all_commands
from tests.docs.pages import ROOT

LIBRARIES = (acckv_jax, mergenet_jax, models)
API = ROOT / "docs/api"
NOTEBOOKS = {
    "own_model": "bytes of keys and values: 262,144",
    "which_policy": "What is on screen while the trumpet plays? - bird",
    "mergenet": "150 transfers; the last one turned",
}
"""What is printed by each."""


def public(library) -> set[str]:
    """Names that the API pages must have; `acckv_jax.jitted` is a module."""
    return {f"{library.__name__}.{n}" for n in library.__all__ if not inspect.ismodule(getattr(library, n))}


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_public_names_are_in_the_api_pages(library):
    listed = re.findall(
        r"^\.\. (?:auto\w+|py:data):: (\S+)$", (API / f"{library.__name__}.md").read_text(), re.MULTILINE
    )
    assert len(listed) == len(set(listed))
    assert public(library) <= set(listed)


def test_the_picture_of_the_cache_is_drawn_by_its_script():
    assert runpy.run_path(str(ROOT / "docs/plot_cache.py"))["drawing"]() == (ROOT / "docs/cache.svg").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built by the command in docs/testing.md."""
    out = tmp_path_factory.mktemp("site")
    (text,) = {command.text for command in all_commands() if command.text.startswith("python -m sphinx")}
    command = [sys.executable, *text.removesuffix("build/site").split()[1:], str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.complete
@pytest.mark.packaging
def test_pages_are_there(site):
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("models/**/README.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    assert [page for page in pages if not (site / page.relative_to(ROOT).with_suffix(".html")).is_file()] == []
    assert "docs/index.html" in (site / "index.html").read_text()
    assert "cache.svg" in (site / "docs/cache.html").read_text() and (site / "_images/cache.svg").is_file()


@pytest.mark.complete
@pytest.mark.packaging
def test_links_between_pages_lead_to_pages(site):
    for page in site.rglob("*.html"):
        for target in re.findall(r'<a [^>]*href="([^"#?]+)', page.read_text()):
            if not target.startswith(("http", "mailto:")):
                assert (page.parent / target).exists(), (page, target)


@pytest.mark.complete
@pytest.mark.packaging
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_ran(name, site):
    page = (site / f"docs/notebooks/{name}.html").read_text()
    assert NOTEBOOKS[name] in html.unescape(page)
    assert "Traceback" not in page
    assert name == "own_model" or "image/png" in page or re.search(r'src="[^"]*_images/\w+\.png"', page)


@pytest.mark.complete
@pytest.mark.packaging
def test_public_names_are_in_the_inventory(site):
    _, _, compressed = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    known = {line.split(" ")[0] for line in zlib.decompress(compressed).decode().splitlines()}
    assert set().union(*map(public, LIBRARIES)) <= known
    page = html.unescape(re.sub(r"<[^>]+>", "", (site / "docs/api/acckv_jax.html").read_text()))
    assert "positions: Int[Array, 'B T'] | Int[Array, 'A B T'] | None = None" in page
    assert "jaxlib._jax" not in page


@pytest.mark.complete
@pytest.mark.packaging
def test_nothing_is_fetched_by_a_reader(site):
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = page.read_text()
        fetched = re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]*"|url\([\'"]?(?:https?:)?//', text)
        fetched += [link for link in re.findall(r"<link [^>]*>", text) if "//" in link]
        assert fetched == [], page
