"""Answers questions about a clip: ``python -m eval.answer [CLIP QUESTION...] [options]``.

Without arguments it answers the bundled clip's questions with the full cache and with every policy.
"""

import contextlib
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
from eval.answering import Answered, measure
from eval.many import Settings, answer_all, read_questions
from eval.perf.roofline import measured_bandwidth
from eval.report import answer_tables, summary
from models import command
from models.acckv_tau import TAU
from models.answering import BUDGET, EncodedClip, checked_key, question_prompt
from models.devices import Devices, OnDevices
from models.errors import UserError
from models.interface import AVModel
from models.media.paths import clip_path
from models.policies import build_policy, check_one_pass, parse_budget

Loader = Callable[[str, Callable[[str, int, int | None], None]], AVModel]
DEMO_POLICIES = ("full", "random", "streaming_llm", "h2o", "snapkv", "knorm", "acckv", "acckv_plus")
"""What the bundled clip is shown with; --compare shows every policy, which takes longer to compile."""
DEMO = Path(__file__).parent.parent / "models" / "smolav" / "demo"


@dataclasses.dataclass(frozen=True)
class Options:
    """Answers questions about a clip, with a full or a pruned KV cache."""

    clip: Annotated[str | None, tyro.conf.Positional] = None
    """mp4, mkv, webm, mov, wav...; a picture, or a folder of pictures. Default: the bundled clip and its questions."""
    questions: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """One or more questions; several share one prefill."""
    clip_too: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further clip or picture, shown after the first one; may be repeated."""
    follow_up: bool = False
    """Each question follows the answer to the one before, on the pruned cache: one conversation."""
    model: str = "smolav"
    """smolav, the folder of a checkpoint (an exported SmolAV, Qwen2.5-Omni, VideoLLaMA2.1-AV), or OWNER/NAME of the
    Hugging Face hub."""
    policy: str | None = None
    """How to prune the cache, alone or in wrappers, such as 'protected(snapkv)'; the default is the measured best,
    quantized(acckv_plus) in 4 bits. See --compare for all."""
    budget: str | None = None
    """With a decimal point the fraction of the prompt that is kept; an integer is a number of slots. Default: 0.2; of
    the default policy 0.3, which are a tenth of the full cache's bytes."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """An option of the policy as NAME=VALUE; may be repeated."""
    layout: str | None = None
    """interleaved (pictures and sound by turns), or blocks (all video, then all audio); the default is the model's."""
    max_new_tokens: int = 16
    """Longest answer."""
    temperature: float = 0.0
    """Above 0: sample instead of taking the likeliest token."""
    top_k: int | None = None
    """Sample among so many likeliest tokens."""
    seed: int = 0
    """Of the sampler."""
    stats: bool = False
    """Measure prefill, pruning and decoding, for which all is run a second time, and print a table."""
    compare: bool = False
    """Answer with the full cache and with every policy, measure them, and print a table."""
    batch: Path | None = None
    """Answer the questions in a file of JSON lines, {"id": ..., "clip": ..., "question": ...}, greedily."""
    out: Path | None = None
    """With --batch, the file of the answers, a JSON object per line; if it has some already, the rest is answered."""
    rows: int = 8
    """With --batch, questions that run at once."""
    json: bool = False
    """Print one JSON object per answer, and nothing else, to standard output."""
    devices: OnDevices = Devices()


DEFAULT_POLICY, DEFAULT_OPTIONS = "quantized(acckv_plus)", ("bits=4",)
"""`models.answering.default_policy` as typed."""
DEFAULT_BUDGET = 0.2
"""Of any other policy."""


def run(options: Options, out: Console, err: Console, load: Loader = models.load) -> None:
    """Loads, reads, answers and prints; `load` finds a model by name.

    Raises:
        UserError: on any mistake in the arguments or the clip.
    """
    if options.batch is not None or options.out is not None:
        run_batch(options, err, load)
        return
    clip, questions, compare = options.clip, options.questions, options.compare
    if clip is None:
        clip, compare = str(DEMO / "demo.mp4"), options.policy is None
        questions = tuple(q["question"] for q in json.loads((DEMO / "questions.json").read_text())["questions"])
    if not questions:
        raise UserError("No question was asked; write it after the clip, in quotes.")
    for question in questions:
        check_question(question)
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, not {options.max_new_tokens}.")
    if options.follow_up and (compare or options.stats):
        raise UserError("--follow-up is one conversation under one policy; leave out --compare and --stats.")
    checked_key(options.seed)
    budget, sampler = choose_budget(options, compare=compare), choose_sampler(options)
    choose_policies(options, budget, compare=compare)  # mistakes are reported before a large model is loaded
    clips = [clip_path(text) for text in (clip, *options.clip_too)]
    with contextlib.ExitStack() as on_devices, progress_bar(err) as progress:
        report = reporter(progress)
        report(f"loading {options.model}")
        download = download_reporter(progress)
        on_devices.enter_context(options.devices.placed(models.kv_heads(options.model, download), options.model))
        model = load(options.model, download)
        policies = choose_policies(options, budget, compare=compare, tau=TAU[model.family])
        several = len(policies) > 1 or (len(questions) > 1 and not options.follow_up)
        encoded = read_clips(clips, options.layout, model, several, progress, report)
        if compare or options.stats:
            report("measuring memory bandwidth")
            settings = (options.max_new_tokens, measured_bandwidth(), sampler, options.seed, report)
            answers = list(measure(model, encoded, questions, policies, *settings))
        else:
            ((name, policy),) = policies.items()
            answers = []
            for found in ask(options, model, encoded, questions, policy, sampler, streamer(progress, out)):
                answers.append(Answered(name, found))
                if not options.json:
                    lines = "\n".join((summary(answers[-1]), *encoded.notes))
                    out.print("\n" + lines, style="dim", markup=False, highlight=False)
    if options.json:
        for answer in answers:
            print(json.dumps(answer.as_dict(model) | {"notes": encoded.notes}))
    elif compare or options.stats:
        out.print(answer_tables(answers, ", ".join(path.name for path in clips)))
        for note in encoded.notes:
            out.print(note, markup=False, highlight=False)


def run_batch(options: Options, err: Console, load: Loader) -> None:
    """Answers the questions of a file.

    Raises:
        UserError: on any mistake in the arguments or the files.
    """
    if options.batch is None or options.out is None:
        raise UserError("--batch, the file of questions, and --out, the file of answers, belong together.")
    alone = {
        "CLIP": options.clip,
        "--clip-too": options.clip_too,
        "--follow-up": options.follow_up,
        "--stats": options.stats,
        "--compare": options.compare,
        "--json": options.json,
        "--temperature": options.temperature,
        "--top-k": options.top_k,
    }
    if given := [name for name, value in alone.items() if value]:
        raise UserError(f"--batch reads clips and questions from a file, greedily; leave out {', '.join(given)}.")
    if options.max_new_tokens < 1 or options.rows < 1:
        raise UserError("--max-new-tokens and --rows must be at least 1.")
    budget = choose_budget(options)
    check_one_pass(choose_policies(options, budget, compare=False))  # before a large model is loaded
    command.check_output(options.out)
    questions = read_questions(options.batch)
    with contextlib.ExitStack() as on_devices, progress_bar(err) as progress:
        download = download_reporter(progress)
        on_devices.enter_context(options.devices.placed(models.kv_heads(options.model, download), options.model))
        task = progress.add_task("answers", total=len(questions))
        settings = Settings(options.layout, options.max_new_tokens, options.rows)
        about = {
            "model": options.model,
            "policy": options.policy or DEFAULT_POLICY,
            "budget": 1.0 if options.policy == "full" else budget,
            "options": list(options.option),
            "layout": options.layout,
            "max_new_tokens": options.max_new_tokens,
        }

        def loaded() -> tuple[AVModel, CachePolicy]:
            model = load(options.model, download)
            (policy,) = choose_policies(options, budget, compare=False, tau=TAU[model.family]).values()
            return model, policy

        def report(done: int, all: int) -> None:
            progress.update(task, completed=done, total=all)

        errors = answer_all(loaded, questions, options.out, settings, about, report)
    if errors:
        told = f"{len(errors)} of {len(questions)} questions could not be answered, such as"
        id, sentence = next(iter(errors.items()))
        if len(errors) == len(questions):
            raise UserError(f"None of the questions could be answered, such as {id}: {sentence}")
        err.print(f"{told} {id}: {sentence} To ask again, delete their lines from {options.out}.", markup=False)


def ask(
    options: Options,
    model: AVModel,
    clip: EncodedClip,
    questions: Sequence[str],
    policy: CachePolicy,
    sampler: Sampler,
    show: Callable[[str], None],
) -> Iterator[models.Answer]:
    """Answers and measures nothing; mistakes in any question come before the first answer."""
    for question in questions[: 1 if options.follow_up else None]:
        question_prompt(model, clip, question, [policy], options.max_new_tokens)
    found = None
    for question in questions:
        found = models.answer(
            model,
            clip,
            question,
            policy=policy,
            max_new_tokens=options.max_new_tokens,
            sampler=sampler,
            seed=options.seed,
            stream=None if options.json else show,
            follow_up=found if options.follow_up else None,
        )
        yield found


def check_question(question: str) -> None:
    """Checks a question as typed.

    Raises:
        UserError: if it is empty, or was typed in another encoding.
    """
    if not question.strip():
        raise UserError("A question is empty; ask something about the clip.")
    try:
        question.encode()
    except UnicodeEncodeError as error:  # Python keeps bytes that are no text as surrogates
        raise UserError("A question is not UTF-8; set the terminal to UTF-8, or type plain letters.") from error


def choose_budget(options: Options, *, compare: bool = False) -> float | int:
    """The budget as typed, or the default one.

    Raises:
        UserError: if it is no budget, or the policy has none.
    """
    if options.budget is None:
        return BUDGET if options.policy is None and not compare else DEFAULT_BUDGET
    if options.policy == "full" and not compare:
        raise UserError("--policy full keeps the whole cache and has no budget; leave out --budget.")
    return parse_budget(options.budget)


def choose_sampler(options: Options) -> Sampler:
    """The sampler that the options describe.

    Raises:
        UserError: if a number is out of range.
    """
    if not options.temperature and options.top_k is None:
        return acckv_jax.greedy
    try:
        return acckv_jax.Sample(options.temperature or 1.0, options.top_k)
    except ValueError as error:
        raise UserError(str(error)) from error


def choose_policies(
    options: Options, budget: float | int, *, compare: bool, tau: float | None = None
) -> dict[str, CachePolicy]:
    """The policies to answer with, by name; `tau` is the model's, where the user gives none."""
    defaults: dict[str, Any] = {} if tau is None else {"tau": tau}
    if not compare:
        if options.policy is not None:
            return {options.policy: build_policy(options.policy, budget, options.option, **defaults)}
        return {DEFAULT_POLICY: build_policy(DEFAULT_POLICY, budget, [*DEFAULT_OPTIONS, *options.option], **defaults)}
    if options.option:
        raise UserError("--option belongs to one policy; name it with --policy instead of --compare.")
    if options.policy:
        raise UserError(f"--compare shows every policy; leave it out, or leave out --policy {options.policy}.")
    names = POLICIES if options.compare else DEMO_POLICIES
    found = {name: build_policy(name, 1.0 if name == "full" else budget, **defaults) for name in names}
    best = budget if options.budget else BUDGET
    return found | {DEFAULT_POLICY: build_policy(DEFAULT_POLICY, best, DEFAULT_OPTIONS, **defaults)}


def read_clips(
    clips: list[Path],
    layout: str | None,
    model: AVModel,
    several: bool,
    progress: Progress,
    report: Callable[[str], None],
) -> EncodedClip:
    """Decodes and encodes clips; `several` answers will share what is read."""
    media = []
    for clip in clips:
        task = progress.add_task(f"decoding {clip.name}", total=None)

        def show(done: float, total: float | None, task: TaskID = task) -> None:
            progress.update(task, completed=done, total=total)

        media.append(model.load_media(clip, show))
        progress.update(task, total=1, completed=1)
    report("encoding pictures and sound")
    return models.encode(model, media, layout=layout, reuse=several)


def streamer(progress: Progress, out: Console) -> Callable[[str], None]:
    """A function that prints text as it is generated."""

    def show(piece: str) -> None:
        progress.stop()
        out.print(piece, end="", markup=False, highlight=False)

    return show


def progress_bar(err: Console) -> Progress:
    """Progress on standard error."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
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
    return command.run(
        lambda: run(options, Console(), Console(stderr=True)), keep_programs=True, devices=options.devices
    )


if __name__ == "__main__":
    sys.exit(main())
