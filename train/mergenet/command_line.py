"""Options of commands that every setting of a recipe belongs to."""

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import tyro

from train.mergenet.config import PREFIX, read_recipe

DEFAULT = "mergenet_cifar10"


def parse(
    options: Any,
    arguments: list[str] | None,
    prog: str,
    description: str | None,
    *,
    prefix: str = PREFIX,
    recipe: str = DEFAULT,
    when_smoke: Mapping[str, Any] | None = None,
) -> Any:
    """Reads the arguments of a command; ends the process where the parser refuses them.

    Args:
        options: a dataclass, which may be generic in the recipe's class, with `settings` (the recipe), `recipe` (its
            name) and `smoke` (whether it is to be the recipe's tiny size).
        arguments: those of the command line, or None for the process's.
        prog: how the command is called.
        description: what --help begins with.
        prefix: of the recipes' names, see `read_recipe`.
        recipe: the default one.
        when_smoke: defaults of other options at the tiny size.

    Raises:
        UserError: if there is no such recipe, or a setting cannot be.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default=recipe)
    first.add_argument("--smoke", action="store_true")
    named, _ = first.parse_known_args(arguments)
    settings, changes = read_recipe(named.recipe, prefix), {}
    if named.smoke:
        print(f"smoke run: the recipe at a tiny size, on {settings.SMOKE_DATA}", flush=True)
        settings, changes = settings.smoke_version(), when_smoke or {}
        jax.config.update("jax_disable_most_optimizations", True)  # most of such a run would be spent on them
    default = options(settings=settings, recipe=named.recipe, **changes)
    kind: Any = options[type(settings)] if getattr(options, "__parameters__", ()) else options
    return tyro.cli(kind, args=arguments, default=default, prog=prog, description=description)
