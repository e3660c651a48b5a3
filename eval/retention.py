"""What cache policies keep of a clip, as a page to look at.

    python -m eval.retention --out retention.html
    python -m eval.retention clip.mp4 "What is shown second?" --policies snapkv acckv --budget 0.1 --out retention.html

Without a clip it is the bundled one.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

import models
from eval.policies import split_variant
from eval.scoreboard.report import write_page
from eval.scoreboard.retention import CLIP, QUESTION, clip_retention
from models import command
from models.acckv_tau import TAU
from models.devices import Devices, OnDevices, is_first
from models.errors import UserError
from models.interface import AVModel
from models.media.paths import clip_path
from models.policies import build_policy, parse_budget


@dataclasses.dataclass(frozen=True)
class Options:
    """What cache policies keep of a clip."""

    clip: Annotated[str | None, tyro.conf.Positional] = None
    """mp4, mkv, webm, mov, wav...; default: the bundled clip and its first question."""
    question: Annotated[str | None, tyro.conf.Positional] = None
    """That the cache is pruned for."""
    policies: tuple[str, ...] = ("random", "snapkv", "acckv", "acckv_plus")
    """Names or wrappers, with options as in 'acckv:merge=none'."""
    budget: str = "0.2"
    """With a decimal point the fraction of the prompt that is kept; an integer is a number of slots."""
    model: str = "smolav"
    """smolav, the folder of a checkpoint, or OWNER/NAME of the Hugging Face hub."""
    out: Path = Path("retention.html")
    """The page: one file that needs no network."""
    devices: OnDevices = Devices()


def run(options: Options, load: Callable[[str], AVModel] = models.load) -> None:
    """Reads the clip, prunes its cache and writes the page.

    Raises:
        UserError: on any mistake in the options or the clip.
    """
    clip, question = options.clip, options.question
    if clip is None:
        clip, question = CLIP, QUESTION
    if not question:
        raise UserError("No question was asked; write it after the clip, in quotes.")
    command.check_output(options.out)
    clip_path(clip)
    budget = parse_budget(options.budget)
    named = [(text, *split_variant(text)) for text in options.policies]
    for _, name, given in named:  # mistakes are reported before a large model is loaded
        build_policy(name, budget, given)
    with options.devices.placed(models.kv_heads(options.model), options.model):
        model = load(options.model)
        policies = {text: build_policy(name, budget, given, tau=TAU[model.family]) for text, name, given in named}
        pictures, shown = clip_retention(model, clip, question, policies)
    about = {"name": Path(clip).name, "question": question, "budget": options.budget, "policies": shown}
    if is_first():
        write_page(options.out, "retention", pictures, clip=about)
    print(options.out)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.retention", description=__doc__)
    return command.run(lambda: run(options), keep_programs=True, devices=options.devices)


if __name__ == "__main__":
    sys.exit(main())
