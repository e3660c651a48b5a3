"""Accuracy of SmolAV under every cache policy, on the held-out clips of `eval.accuracy`.

    python -m eval.policy_accuracy                     20 clips
    python -m eval.policy_accuracy --clips 200 --out models/smolav/policy_accuracy.json

One question of each group per clip, over one prefill. The prefill's own logits are those of the full cache, whatever
the policy, and an answer is one or two tokens; so the prompt's last token is held back and run on the pruned cache. The
second question is another one, asked after the first was answered, on the cache that was pruned for the first: this is
where a policy shows what it lost. An answer counts only if it is exactly the word. Nothing is evicted while decoding.
"""

import collections
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

import acckv_jax
from acckv_jax import POLICIES, CachePolicy
from eval.held_out import GROUPS, MOST, HeldOutClips, group_of
from eval.policies import build_policy, check_policies
from models import command
from models.acckv_tau import TAU
from models.batching import Batch, padded
from models.errors import UserError
from models.interface import EmbeddedPrompt
from models.smolav.config import LAYOUTS
from models.smolav.model import SmolAVModel
from train.data.clips import Clip
from train.data.questions import Question, questions

Loader = Callable[[], tuple[SmolAVModel, HeldOutClips]]

LENGTHS = (512, 832)
"""Padded lengths of the prefix: few shapes to compile."""
QUESTION = 64
"""Padded length of the last rows of the prefix with a question; SnapKV's window is among them."""
ANSWER = 4
"""Most tokens of an answer, its end included."""
WINDOW = 16
"""Rows that SnapKV observes, so that its window fits into a tenth of the shortest clip."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Accuracy under every policy and budget."""

    clips: int = 20
    """Test clips, at most 1000."""
    first: int = 0
    """Number of the first of them: variants are chosen on other clips than they are reported on."""
    budgets: tuple[float, ...] = (0.2, 0.1)
    """Fractions of the prompt to keep."""
    policies: tuple[str, ...] = tuple(name for name in POLICIES if name != "full")
    """Policies; the full cache is always measured."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further variant as POLICY:NAME=VALUE,NAME=VALUE, for ablations; may be repeated."""
    out: Path | None = None
    """Also write the result as JSON."""


def variants(options: Options, tau: float) -> dict[tuple[str, float], CachePolicy]:
    """Every policy at every budget, and the full cache.

    Raises:
        UserError: on an unknown policy, option or budget.
    """
    named: dict[str, tuple[str, list[str]]] = {name: (name, []) for name in options.policies}
    for text in options.option:
        name, _, pairs = text.partition(":")
        if not pairs:
            raise UserError(f"Variant {text!r} names no option; write POLICY:NAME=VALUE,NAME=VALUE.")
        named[text] = (name, pairs.split(","))
    found = {("full", 1.0): build_policy("full", 1.0)}
    for label, (name, chosen) in named.items():
        for budget in options.budgets:
            found[label, budget] = build_policy(name, budget, chosen, tau=tau, window_size=WINDOW, evict_every=0)
    return found


def one_of_each(clip: Clip, index: int) -> list[Question]:
    """One question of each group that the clip has, another one for each clip."""
    grouped = collections.defaultdict(list)
    for question in questions(clip):
        grouped[group_of(question)].append(question)
    return [grouped[group][index % len(grouped[group])] for group in GROUPS if grouped[group]]


def answers(
    model: SmolAVModel, prefix: EmbeddedPrompt, asked: list[Question], policies: dict[tuple[str, float], CachePolicy]
) -> Iterator[tuple[tuple[str, float], list[str], list[str]]]:
    """Each policy's answers to all questions, and to the next question of the list asked after each; one prefill."""
    scored_for = tuple(dict.fromkeys(policy.with_budget(1.0) for policy in policies.values()))
    score = functools.partial(acckv_jax.jitted.score, model.decoder, model.params, policies=scored_for)
    window = max(policy.window for policy in scored_for)
    shared_tokens = max(1, len(prefix) - window)
    head = prefix.split(shared_tokens)[0]
    length = next(n for n in LENGTHS if len(head) <= n)
    _, clip = score(**padded([head], length).arguments(), complete=False)
    rows = [*asked, *asked[:1] * (len(GROUPS) - len(asked))]
    whole = [prefix.then(model.encode_question(q.text)) for q in rows]
    labelled = {f"{label} at budget {budget:g}": policy for (label, budget), policy in policies.items()}
    for prompt in whole:
        check_policies(labelled, prompt.modality[:-1])
    tails = [prompt.split(shared_tokens)[1] for prompt in whole]
    held_back = [tail.split(len(tail) - 1) for tail in tails]
    repeated = acckv_jax.repeat_rows(clip, len(rows))
    _, scored = score(**_asked([c for c, _ in held_back]).arguments(), before=repeated)
    last = padded([c for _, c in held_back], 1)
    following = [*asked[1:], *asked[:1], *asked[:1] * (len(rows) - len(asked))]
    second = _asked([model.encode_next_question(q.answer, f.text) for q, f in zip(rows, following, strict=True)])
    for name, policy in policies.items():
        cache = acckv_jax.prune(scored, policy, reserved_slots=ANSWER)
        extend = functools.partial(acckv_jax.jitted.extend, model.decoder, model.params, policy=policy.while_decoding())
        logits, cache = extend(**last.arguments(), cache=cache)
        later_logits, later = extend(**second.arguments(), cache=cache)
        yield (
            name,
            _greedy(model, policy, logits, cache, len(asked)),
            _greedy(model, policy, later_logits, later, len(asked)),
        )


def _asked(chunks: Sequence[EmbeddedPrompt]) -> Batch:
    """Chunks that end in a question as a batch; a wider window than usual takes a longer one."""
    return padded(chunks, -(-max(len(c) for c in chunks) // QUESTION) * QUESTION)


def _greedy(
    model: SmolAVModel, policy: CachePolicy, logits: jax.Array, cache: acckv_jax.KVCache, count: int
) -> list[str]:
    """Greedy answers of the first `count` rows."""
    state = acckv_jax.start_decoding(logits, cache, jax.random.key(0), stop_token_ids=model.stop_token_ids)
    first = np.asarray(state.token)[:, None]
    made, number, _ = acckv_jax.jitted.decode(
        model.decoder,
        model.params,
        state,
        policy.while_decoding(),
        steps=ANSWER - 1,
        stop_token_ids=model.stop_token_ids,
    )
    tokens = np.concatenate([first, np.asarray(made)[:, : int(number)]], axis=1)
    return [_text(model, row) for row in tokens[:count]]


def _text(model: SmolAVModel, row: np.ndarray) -> str:
    """An answer up to its end; unfinished ones are marked, so that they count as wrong."""
    tokens = row.tolist()
    end = next((i for i, token in enumerate(tokens) if token in model.stop_token_ids), None)
    return model.detokenize(tokens[:end]).strip() if end is not None else model.detokenize(tokens) + "..."


def load_all() -> tuple[SmolAVModel, HeldOutClips]:
    """The embedded model and the held-out clips."""
    model = SmolAVModel.load()
    return model, HeldOutClips.load(model.encoders)


def measure(options: Options, load: Loader) -> dict[str, Any]:
    """Runs everything; the result is ready for JSON.

    Raises:
        UserError: on any mistake in the options.
    """
    last = options.first + options.clips
    if options.clips < 1:
        raise UserError(f"--clips must be at least 1, not {options.clips}.")
    if options.first < 0 or last > MOST:
        wanted = f"{options.first} to {last - 1}"
        raise UserError(f"--first and --clips must choose among clips 0 to {MOST - 1}, not {wanted}.")
    policies = variants(options, TAU[SmolAVModel.family])
    model, clips = load()
    protocols = ("first", "second")
    right = {(name, turn): {group: [] for group in GROUPS} for name in policies for turn in protocols}
    held_out = clips.numbered(range(options.first, last))
    for index, clip, media in track(held_out, "clips", options.clips, console=Console(stderr=True)):
        prefix = model.encode_features(media, LAYOUTS[index % len(LAYOUTS)])
        asked = one_of_each(clip, index)
        for name, *turns in answers(model, prefix, asked, policies):
            for turn, expected, found in zip(protocols, (asked, [*asked[1:], *asked[:1]]), turns, strict=True):
                for question, answer in zip(expected, found, strict=True):
                    right[name, turn][group_of(question)].append(answer == question.answer)
    rows = [
        {
            "policy": policy,
            "budget": budget,
            "question": turn,
            **{
                group: {"asked": len(hits), "accuracy": round(float(np.mean(hits)), 4) if hits else None}
                for group, hits in groups.items()
            },
            "all": round(float(np.mean([hit for hits in groups.values() for hit in hits])), 4),
        }
        for ((policy, budget), turn), groups in right.items()
    ]
    return {"clips": options.clips, "rows": rows}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.policy_accuracy", description=__doc__)
    command.keep_compiled()
    return command.run(lambda: run(options))


def run(options: Options, load: Loader = load_all) -> None:
    """Measures, prints a table, and writes the result if asked to; `load` finds the model and the clips.

    Raises:
        UserError: on any mistake in the options.
    """
    command.check_output(options.out)
    result = measure(options, load)
    table = Table(title=f"{result['clips']} held-out clips, exact answers", padding=(0, 0), pad_edge=False)
    for name in ("policy", "budget", "question", *GROUPS, "all"):
        table.add_column(name, no_wrap=True)
    for row in result["rows"]:
        shown = [f"{row[g]['accuracy']:.3f}" if row[g]["asked"] else "-" for g in GROUPS]
        table.add_row(row["policy"], f"{row['budget']:g}", row["question"], *shown, f"{row['all']:.3f}")
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
