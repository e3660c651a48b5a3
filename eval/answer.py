"""Answers questions about a clip: ``python -m eval.answer [CLIP QUESTION...] [options]``.

Without arguments it answers the bundled clip's questions with the full cache and with every policy.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

import acckv_jax
import models
from acckv_jax import POLICIES, CachePolicy
from acckv_jax.sampling import Sampler
from eval.answering import Answer as MeasuredAnswer
from eval.answering import answer_all, answer_one
from eval.perf.roofline import measured_bandwidth
from eval.policies import build_policy, check_policies, parse_budget
from eval.report import answer_tables
from models import command
from models.acckv_tau import TAU
from models.answering import Answer, EncodedClip, answer, check_fits
from models.errors import UserError
from models.interface import AVModel, EmbeddedPrompt

Loader = Callable[[str, Callable[[str, int, int | None], None]], AVModel]
DEMO = Path(__file__).parent.parent / "models" / "smolav" / "demo"


@dataclasses.dataclass(frozen=True)
class Options:
    """Answers questions about a clip, with a full or a pruned KV cache."""

    clip: Annotated[Path | None, tyro.conf.Positional] = None
    """mp4, mkv, webm, mov, wav...; a picture, or a folder of pictures. Default: the bundled clip and its questions."""
    questions: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """One or more questions; several share one prefill."""
    model: str = "smolav"
    """smolav, or the folder of a checkpoint: an exported SmolAV, Qwen2.5-Omni, VideoLLaMA2.1-AV."""
    policy: str | None = None
    """How to prune the cache; the default is the measured best, acckv_plus. See --compare for all."""
    budget: str = "0.2"
    """With a decimal point the fraction of the prompt that is kept; an integer is a number of slots."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """An option of the policy as NAME=VALUE; may be repeated."""
    layout: str | None = None
    """interleaved (pictures and sound by turns), or blocks (all video, then all audio); the default is the model's."""
    max_new_tokens: int = 16
    """Longest answer."""
    compare: bool = False
    """Answer with the full cache and with every policy, and print a table."""
    stats: bool = False
    """Measure prefill, pruning and decoding, and print a table."""
    temperature: float = 0.0
    """Above 0: sample instead of taking the likeliest token."""
    top_k: int | None = None
    """Sample among so many likeliest tokens."""
    seed: int = 0
    """Of the sampler."""
    json: bool = False
    """Print one JSON object per answer, and nothing else, to standard output."""


DEFAULT_POLICY = "acckv_plus"


def run(options: Options, out: Console, err: Console, load: Loader = models.load) -> None:
    """Loads, reads, answers and prints; `load` finds a model by name.

    Raises:
        UserError: on any mistake in the arguments or the clip.
    """
    clip, questions, compare = options.clip, options.questions, options.compare
    if clip is None:
        clip, compare = DEMO / "demo.mp4", options.policy is None
        questions = tuple(q["question"] for q in json.loads((DEMO / "questions.json").read_text())["questions"])
    if not questions:
        raise UserError("No question was asked; write it after the clip, in quotes.")
    if not all(question.strip() for question in questions):
        raise UserError("A question is empty; ask something about the clip.")
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, not {options.max_new_tokens}.")
    budget = parse_budget(options.budget)
    sampler = choose_sampler(options, measured=compare or options.stats)
    choose_policies(options, budget, compare=compare)  # mistakes are told before a large model is loaded
    with progress_bar(err) as progress:
        report = reporter(progress)
        report(f"loading {options.model}")
        model = load(options.model, download_reporter(progress))
        policies = choose_policies(options, budget, compare=compare, tau=TAU[model.family])
        prefix = read_prefix(clip, options.layout, model, progress, report, err)
        if not (compare or options.stats):
            ((name, policy),) = policies.items()
            answer_plainly(options, model, prefix, questions, (name, policy), sampler, progress, report, out)
            return
        report("measuring memory bandwidth")
        bandwidth = measured_bandwidth()
        if len(questions) == 1 and len(policies) == 1:
            item = next(iter(policies.items()))
            pieces = answer_one(model, prefix, questions[0], item, options.max_new_tokens, bandwidth, report)
            answers = list(stream(pieces, progress, out, quiet=options.json))
        else:
            answers = list(answer_all(model, prefix, questions, policies, options.max_new_tokens, bandwidth, report))
    if options.json:
        for answer in answers:
            print(json.dumps(dataclasses.asdict(answer)))
    else:
        out.print(answer_tables(answers, clip.name))


def choose_sampler(options: Options, *, measured: bool) -> Sampler:
    """How tokens are chosen.

    Raises:
        UserError: if the options do not fit each other.
    """
    if not options.temperature and options.top_k is None:
        return acckv_jax.greedy
    if measured:
        raise UserError("--temperature and --top-k are for plain answers; leave out --compare and --stats.")
    try:
        return acckv_jax.Sample(options.temperature or 1.0, options.top_k)
    except ValueError as error:
        raise UserError(str(error)) from error


def answer_plainly(
    options: Options,
    model: AVModel,
    prefix: EmbeddedPrompt,
    questions: Sequence[str],
    policy: tuple[str, CachePolicy],
    sampler: Sampler,
    progress: Progress,
    report: Callable[[str], None],
    out: Console,
) -> None:
    """Answers and measures nothing; several questions share the clip's prefill."""
    name, chosen = policy
    clip: EncodedClip | EmbeddedPrompt = EncodedClip(prefix) if len(questions) > 1 else prefix
    for prompt in (prefix.then(model.encode_question(question)) for question in questions):
        check_fits(model, prompt, options.max_new_tokens)
        check_policies({name: chosen}, prompt.modality)

    def show(text: str) -> None:
        progress.stop()
        out.print(text, end="", markup=False, highlight=False)

    for question in questions:
        report(f"answering “{question}”")
        found = answer(
            model,
            clip,
            question,
            policy=chosen,
            max_new_tokens=options.max_new_tokens,
            sampler=sampler,
            seed=options.seed,
            stream=None if options.json else show,
        )
        if options.json:
            print(json.dumps(plain_fields(found, model.name, name)))
        else:
            out.print("\n" + summary(found, name), style="dim", markup=False, highlight=False)


def plain_fields(found: Answer, model: str, policy: str) -> dict[str, Any]:
    """An answer as JSON; `--stats` adds times."""
    return {
        "answer": found.text,
        "model": model,
        "policy": policy,
        "budget": found.policy.budget,
        "question": found.question,
        "tokens": found.prompt_tokens,
        "kept": [{m: n for m, n in layer.items() if m != "generated"} for layer in found.kept],
        "cache_bytes": found.cache_bytes.prompt,
        "full_cache_bytes": found.full_cache_bytes,
        "decode_room_bytes": found.cache_bytes.reserved,
        "metadata_bytes": found.cache_bytes.metadata,
    }


def summary(found: Answer, policy: str) -> str:
    """What was kept, in a line."""
    names = ("text", "video", "audio")
    kept = "/".join(f"{sum(layer[name] for layer in found.kept) / len(found.kept):.0f}" for name in names)
    tokens = "/".join(str(found.prompt_tokens[name]) for name in names)
    share = found.cache_bytes.prompt / found.full_cache_bytes
    size = f"{found.cache_bytes.prompt / 1e6:.1f} of {found.full_cache_bytes / 1e6:.1f} MB ({share:.0%})"
    return f"[{policy}: kept {kept} of {tokens} text/video/audio tokens, {size}]"


def choose_policies(
    options: Options, budget: float | int, *, compare: bool, tau: float | None = None
) -> dict[str, CachePolicy]:
    """The policies to answer with, by name; `tau` is the model's, where the user gives none."""
    defaults: dict[str, Any] = {} if tau is None else {"tau": tau}
    if not compare:
        name = DEFAULT_POLICY if options.policy is None else options.policy
        return {name: build_policy(name, budget, options.option, **defaults)}
    if options.option:
        raise UserError("--option belongs to one policy; name it with --policy instead of --compare.")
    if options.policy:
        raise UserError(f"--compare shows every policy; leave it out, or leave out --policy {options.policy}.")
    return {name: build_policy(name, 1.0 if name == "full" else budget, **defaults) for name in POLICIES}


def read_prefix(
    clip: Path, layout: str | None, model: AVModel, progress: Progress, report: Callable[[str], None], err: Console
) -> EmbeddedPrompt:
    """Decodes and encodes a clip."""
    task = progress.add_task(f"decoding {clip.name}", total=None)
    media = model.load_media(clip, lambda done, total: progress.update(task, completed=done, total=total))
    progress.update(task, total=1, completed=1)
    for note in media.notes:
        err.print(note)
    report("encoding pictures and sound")
    return model.encode_media(media, layout or model.layouts[0])


def stream(
    pieces: Iterator[str | MeasuredAnswer], progress: Progress, out: Console, *, quiet: bool
) -> Iterator[MeasuredAnswer]:
    """Prints text as it is generated; passes on the answer."""
    for piece in pieces:
        if isinstance(piece, MeasuredAnswer):
            yield piece
        elif not quiet:
            progress.stop()
            out.print(piece, end="", markup=False, highlight=False)
    if not quiet:
        out.print()


def progress_bar(err: Console) -> Progress:
    """Progress on standard error."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True
    )


def reporter(progress: Progress) -> Callable[[str], None]:
    """A function that shows what is being done now."""
    task = progress.add_task("starting", total=None)
    return lambda text: progress.update(task, description=text)


def download_reporter(progress: Progress) -> Callable[[str, int, int | None], None]:
    """A function that shows how far each download is."""
    tasks: dict[str, TaskID] = {}

    def show(label: str, done: int, total: int | None) -> None:
        if label not in tasks:
            tasks[label] = progress.add_task(f"downloading {label}", total=total)
        progress.update(tasks[label], completed=done, total=total)

    return show


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.answer", description=__doc__)
    command.keep_compiled()
    return command.run(lambda: run(options, Console(), Console(stderr=True)))


if __name__ == "__main__":
    sys.exit(main())
