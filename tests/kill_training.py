"""Kills a small training at random moments of a save, starts it again each time, and compares it with one left alone.

    python -m tests.kill_training --kills 50 --seed 0 --output docs/kill_training.md

The training is SmolAV's, with a tiny model and made-up features, in a process of its own that SIGKILL ends.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from models.smolav.params import trained_shapes
from tests import programs
from tests.train.synthetic import CONFIG, tiny_run, with_last_stage
from train.checkpoint import manager, restore
from train.log import read_metrics
from train.smolav.config import TrainConfig
from train.smolav.loop import fresh_state, train

SAVE_EVERY, KEEP = 5, 2
MOST_SAVES = 3
"""A process is killed in one of its first so many saves."""
LONGER = 1.3
"""The latest moment of a kill, in usual lengths of a save: some come after it, when an older checkpoint is deleted."""
PATIENCE = 300
"""Seconds without a save after which a run hangs."""
HALF = ocp.path.atomicity.TMP_DIR_SUFFIX


@dataclasses.dataclass(frozen=True)
class Kill:
    """What became of one kill.

    Attributes:
        saving: the step that was being saved.
        after_ms: milliseconds since its folder appeared under its temporary name.
        found: the state of that checkpoint afterwards: "half-written", "whole", or "whole, older one left".
        seen: the newest whole checkpoint just before the kill; 0 if there was none.
        newest: and just after it.
        reached: the last step that was logged.
        resumed: the step that the next process resumed at.
    """

    saving: int
    after_ms: int
    found: str
    seen: int
    newest: int
    reached: int
    resumed: int = -1

    @property
    def lost(self) -> int:
        """Steps that were trained again."""
        return self.reached - self.resumed

    @property
    def verdict(self) -> str:
        """ "yes", or what should not be so."""
        if self.newest < self.seen:
            return f"step {self.seen} was whole and is gone"
        if self.resumed != self.newest:
            return f"resumed at {self.resumed}, not at {self.newest}"
        if self.lost > self.reached - self.seen:
            return f"more lost than since step {self.seen}"
        return "yes"


def config(steps: int) -> TrainConfig:
    """The configuration of the runs."""
    changes = {"save_every": SAVE_EVERY, "keep": KEEP, "validate_every": 10**6}
    return dataclasses.replace(with_last_stage(CONFIG, steps - CONFIG.stages[0].steps), **changes)


def train_here(workdir: Path, steps: int) -> None:
    """Runs the training in this process."""
    programs.keep()
    run, trained = tiny_run(workdir, config(steps))
    train(dataclasses.replace(run, log=functools.partial(print, flush=True)), lambda: trained)


@contextlib.contextmanager
def training(workdir: Path, steps: int) -> Iterator[subprocess.Popen]:
    """The training in another process, which does not outlive the context; its output is in WORKDIR/output."""
    workdir.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.kill_training", "--train", str(workdir), "--steps", str(steps)]
    with (workdir / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def saves(process: subprocess.Popen, checkpoints: Path) -> Iterator[int]:
    """The steps that a process saves, each as soon as its folder appears under its temporary name."""
    before, last = half_written(checkpoints), time.monotonic()
    while process.poll() is None:
        now = half_written(checkpoints)
        for step in sorted(now - before):
            yield step
            last = time.monotonic()
        if time.monotonic() - last > PATIENCE:
            raise TimeoutError(f"no save for {PATIENCE} s")
        before = now
        time.sleep(0.001)


def half_written(checkpoints: Path) -> set[int]:
    """Steps of folders under their temporary names."""
    return {int(path.name.partition(".")[0]) for path in checkpoints.glob(f"*{HALF}*")}


def whole(checkpoints: Path) -> set[int]:
    """Steps of folders under their final names; an old one of them may be in the midst of its deletion."""
    return {int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()}


def leave_alone(workdir: Path, steps: int) -> float:
    """Trains without a kill; returns the usual seconds from a temporary to a final name."""
    lengths, checkpoints = [], workdir / "checkpoints"
    with training(workdir, steps) as process:
        for step in saves(process, checkpoints):
            began = time.monotonic()
            while step not in whole(checkpoints) and process.poll() is None:
                time.sleep(0.001)
            lengths.append(time.monotonic() - began)
        ended_well(process, workdir)
    return statistics.median(lengths)


def ended_well(process: subprocess.Popen, workdir: Path) -> None:
    """Raises what a process said if it has failed."""
    if process.wait():
        raise RuntimeError(f"a run ended with status {process.returncode}:\n{(workdir / 'output').read_text()}")


def kill(workdir: Path, steps: int, count: int, delay: float) -> Kill:
    """Starts the training, and kills it `delay` seconds after the save number `count` of this process began."""
    checkpoints = workdir / "checkpoints"
    with training(workdir, steps) as process:
        for number, saving in enumerate(saves(process, checkpoints), 1):
            if number < count:
                continue
            began = time.monotonic()
            time.sleep(delay)
            seen = max(whole(checkpoints), default=0)
            process.kill()
            after_ms = round(1000 * (time.monotonic() - began))
            process.wait()
            newest = max(whole(checkpoints), default=0)
            reached = int(read_metrics(workdir / "metrics.csv")[-1]["step"])
            return Kill(saving, after_ms, state_of(saving, checkpoints), seen, newest, reached)
        ended_well(process, workdir)
    raise RuntimeError("the run ended before it could be killed")


def state_of(saving: int, checkpoints: Path) -> str:
    """What a kill has left of the checkpoint that was being saved."""
    if saving not in whole(checkpoints):
        return "half-written"
    return "whole, older one left" if len(whole(checkpoints)) > KEEP else "whole"


def resumed_at(workdir: Path) -> int:
    """The step that the last process resumed at; 0 if it has begun anew."""
    lines = [line for line in (workdir / "output").read_text().splitlines() if line.startswith("resumed at step ")]
    return int(lines[0].split()[-1]) if lines else 0


def kill_often(workdir: Path, steps: int, plan: list[tuple[int, float]]) -> list[Kill]:
    """Trains with kills, and at last to the end.

    Args:
        workdir: of the run.
        steps: of the run; so many that every kill comes before its end.
        plan: for each kill, in which save of its process, and how many seconds after that has begun.
    """
    kills: list[Kill] = []
    for count, delay in plan:
        killed = kill(workdir, steps, count, delay)
        kills = [*_known(kills, workdir), killed]
        print(f"kill {len(kills)} of {len(plan)}: {killed}", file=sys.stderr, flush=True)
    with training(workdir, steps) as process:
        ended_well(process, workdir)
    return _known(kills, workdir)


def _known(kills: list[Kill], workdir: Path) -> list[Kill]:
    """The kills; of the last one it is known by now where the run resumed."""
    return [*kills[:-1], *(dataclasses.replace(kill, resumed=resumed_at(workdir)) for kill in kills[-1:])]


def make_plan(kills: int, seed: int) -> list[tuple[int, float]]:
    """For each kill, in which save of its process, and after how many usual lengths of a save."""
    rng = random.Random(seed)
    return [(rng.randint(1, MOST_SAVES), rng.uniform(0, LONGER)) for _ in range(kills)]


def differences(killed: Path, alone: Path, steps: int) -> str:
    """What differs in the measurements and the last checkpoint of two finished runs; empty if nothing does."""
    rows = [[{**row, "tokens_per_second": ""} for row in read_metrics(run / "metrics.csv")] for run in (killed, alone)]
    for pair in itertools.zip_longest(*rows):
        if pair[0] != pair[1]:
            return f"{pair[0]} is not {pair[1]}."
    like = jax.eval_shape(lambda parts: fresh_state(config(steps), parts), trained_shapes(CONFIG.model))
    states = []
    for run in (killed, alone):
        with manager(run / "checkpoints", KEEP, read_only=True) as checkpoints:
            states.append(restore(checkpoints, like, config(steps).identity()))
    same = jax.tree.map(np.array_equal, *states)
    return "" if all(jax.tree.leaves(same)) else f"not equal are {same}."


def report(kills: list[Kill], seed: int, steps: int, length: float, difference: str) -> str:
    """The kills as Markdown."""
    well = sum(kill.verdict == "yes" for kill in kills)
    half = sum(kill.found == "half-written" for kill in kills)
    columns = (
        "kill",
        "saving step",
        "ms since then",
        "found",
        "last step logged",
        "resumed at",
        "repeated",
        "ok",
    )
    lines = [
        "# Killed trainings",
        "",
        f"`python -m tests.kill_training --kills {len(kills)} --seed {seed}`, with Orbax {version('orbax-checkpoint')}",
        f"and JAX {jax.__version__}. "
        f"One training of {steps} steps saves after every {SAVE_EVERY}, while it continues, and",
        f"keeps {KEEP} checkpoints. SIGKILL comes up to {LONGER} usual lengths of a save ({1000 * length:.0f} ms here)",
        "after a checkpoint's folder has appeared under its temporary name; then the same command is given again.",
        "",
        f"- {well} of {len(kills)} kills cost no whole checkpoint, and no step before it.",
        f"- {half} came before the checkpoint was whole, {len(kills) - half} after.",
        f"- Compared with a run that was not killed, the losses of all {steps} steps (as logged, to five decimals) and",
        "  the last checkpoint (parameters and optimizer, to the last bit): " + (difference or "equal."),
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    for number, kill in enumerate(kills, 1):
        cells = (number, kill.saving, kill.after_ms, kill.found, kill.reached, kill.resumed, kill.lost, kill.verdict)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Kills trainings; exits with 1 if something was lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, help="file for the report; by default it is printed")
    parser.add_argument("--train", type=Path, help="only train, in this folder")
    parser.add_argument("--steps", type=int, help="of the training in --train")
    options = parser.parse_args()
    if options.train is not None:
        train_here(options.train, options.steps)
        return 0
    plan = make_plan(options.kills, options.seed)
    # Each process gets to its save of the plan at most; a few more, as a busy machine may overlook one.
    steps = SAVE_EVERY * (sum(count for count, _ in plan) + options.kills // 5 + 3)
    with tempfile.TemporaryDirectory() as name:
        alone, killed = Path(name, "alone"), Path(name, "killed")
        length = leave_alone(alone, steps)
        kills = kill_often(killed, steps, [(count, part * length) for count, part in plan])
        difference = differences(killed, alone, steps)
    text = report(kills, options.seed, steps, length, difference)
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text)
    return int(bool(difference) or any(kill.verdict != "yes" for kill in kills))


if __name__ == "__main__":
    sys.exit(main())
