"""The documentation site: `sphinx-build -c docs . build/site`, without a network.

The source folder is the checkout itself, so that pages which lie beside the code (README.md, models/smolav/README.md)
are pages of the site too, and links between them are the same here and in the repository.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "acckv_jax"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
project_copyright = ""
html_show_copyright = False

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "models/**/README.md",
    "train/**/README.md",
    "tests/**/README.md",
]
exclude_patterns = ["**/__pycache__", "**/.*", "build", "dist", "runs", "*.egg-info"]
nitpicky = True

# Pages: MyST, with GitHub's anchors.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# Notebooks are executed; a second build finds the outputs of those that did not change.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_excludepatterns = ["README.md"]

# The API, from docstrings. Names in single backticks are code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
# There is no inventory of other projects without a network.
nitpick_ignore_regex = [("py:.*", r"(jax|jaxlib|jaxtyping|flax|nnx|numpy|np|optax|collections|pathlib|typing)(\..*)?")]

html_theme = "sphinx_book_theme"
html_title = project
html_extra_path = ["site"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2}


def shown(text: str) -> str:
    """Annotations as they are written in the code: Float[Array, "B T"] without its modules."""
    return text.replace("~jaxtyping.", "").replace("jaxtyping.", "").replace("jaxlib._jax.Array", "Array")


def setup(app):
    """Changes signatures as they are read."""

    def signature(app, what, name, thing, options, arguments, returned):
        return arguments and shown(arguments), returned and shown(returned)

    app.connect("autodoc-process-signature", signature)
