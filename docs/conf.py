"""The documentation site: `sphinx-build -c docs . build/site`, without a network.

The source folder is the checkout itself, so that pages which lie beside the code (README.md, models/smolav/README.md)
are pages of the site too, and links between them are the same here and in the repository.
"""

import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.util.matching import patfilter

ROOT = Path(__file__).resolve().parents[1]

project = "acckv_jax"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
html_show_copyright = False

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "models/README.md",
    "models/**/README.md",
    "train/**/README.md",
    "tests/**/README.md",
]
exclude_patterns = ["**/__pycache__", "**/.*", "build", "dist", "runs", "*.egg-info"]
nitpicky = True

# Pages: MyST, with GitHub's anchors.
myst_heading_anchors = 4

# Notebooks are executed; a second build finds the outputs of those that did not change.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 900

# The API, from docstrings. Names in single backticks are code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has them
# There is no inventory of other projects without a network.
nitpick_ignore_regex = [
    ("py:.*", r"(jax|jaxlib|jaxtyping|flax|numpy|np|optax|PIL|collections|os|pathlib|typing)(\..*)?"),
    ("py:class", "ndarray"),
    ("py:class", r"models\.(answering\.Prefill|decoder\.DecoderConfig|media\.clip\.Outline)"),  # not for users
]

html_theme = "sphinx_book_theme"
html_title = project
html_extra_path = ["site"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2}


def without_empty_globs(app, name, source):
    """Drops patterns of the contents that match no page yet, of which Sphinx would warn."""
    if name == root_doc:
        lines = source[0].splitlines()
        source[0] = "\n".join(x for x in lines if not x.endswith("*") or patfilter(app.env.found_docs, f"docs/{x}"))


def as_written(app, doctree):
    """Shows annotations as the code has them: Float[Array, "B T"] without its modules."""
    for node in list(doctree.findall(nodes.Text)):
        short = node.replace("jaxtyping.", "").replace("jaxlib._jax.", "")
        if short != node:
            node.parent.replace(node, nodes.Text(short))


def setup(app):
    """Connects the functions above."""
    app.connect("source-read", without_empty_globs)
    app.connect("doctree-read", as_written)
