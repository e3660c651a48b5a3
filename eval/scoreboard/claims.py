"""What the AccKV paper claims, each by an experiment that can fail (arXiv 2511.11106, as far as it is known).

(i) the weight of the video grows with depth, for questions about sound too; (ii) merging across modalities ruins
answers, merging within one does not; (iii) dropping a whole modality hurts; (iv) each of the three parts helps;
(v) AccKV beats H2O, SnapKV, LOOK-M and FastV at equal budgets.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

import acckv_jax as kv
from acckv_jax.sharding import on_host
from eval import bootstrap
from eval.bootstrap import Estimate
from eval.held_back import Model
from eval.results import Variant
from eval.scoreboard.table import ALL, Answers, Part
from models.batching import padded
from models.interface import EmbeddedPrompt

Verdict = Literal["holds", "fails", "open"]
BUDGETS = ("0.2", "0.1")
RIVALS = ("h2o", "snapkv", "look_m", "fastv")
WITHOUT = {
    "text rows as the only observers (rows=text) instead of all": "acckv:rows=text",
    "merging": "acckv:merge=none",
    "the gate of cross-calibration": "acckv:gate=none",
    "the split of the budget by attention": "acckv:split=proportional",
}
CROSS = "acckv:cross_modal_merge=true"
ONLY = {"video": "random:only=video", "audio": "random:only=audio"}


@dataclasses.dataclass(frozen=True)
class Number:
    """A measured number of a claim.

    Attributes:
        about: what it is.
        estimate: with its interval.
        verdict: whether its interval lies where the claim says, lies on the other side, or reaches across.
    """

    about: str
    estimate: Estimate
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim and what became of it.

    Attributes:
        number: (i) to (v).
        says: the claim.
        experiment: how it was tested.
        numbers: what came out.
    """

    number: str
    says: str
    experiment: str
    numbers: tuple[Number, ...]

    @property
    def verdict(self) -> Verdict:
        """It holds if all its numbers do, and fails if one does."""
        verdicts = {one.verdict for one in self.numbers}
        return "fails" if "fails" in verdicts else "holds" if verdicts == {"holds"} else "open"

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        numbers = [dataclasses.asdict(one) | {"estimate": one.estimate.as_json()} for one in self.numbers]
        return dataclasses.asdict(self) | {"numbers": numbers, "verdict": self.verdict}


def video_weights(model: Model, prompt: EmbeddedPrompt) -> Float[np.ndarray, " L"]:
    """W_Vd of each layer: the mean attention of a text row to a video token, over that plus the same of audio."""
    rows = kv.QuerySet("text")

    class TextRows(kv.CachePolicy):
        @property
        def queries(self) -> tuple[kv.QuerySet, ...]:
            return (rows,)

    batch = padded([prompt], kv.bucket_length(len(prompt)))
    _, scored = kv.jitted.score(model.decoder, model.params, **batch.arguments(), policies=(TextRows(),))
    means = []
    for layer, sums in zip(scored.cache.layers, scored.attention_sums(rows), strict=True):
        modality, valid, received = (on_host(x)[0] for x in (layer.modality, layer.valid, sums))
        means.append([received[valid & (modality == kind)].mean() for kind in (kv.Modality.VIDEO, kv.Modality.AUDIO)])
    video, audio = np.array(means, np.float64).T
    return video / (video + audio)


def grows_with_depth(weights: Mapping[str, Iterable[tuple[str, Float[np.ndarray, " L"]]]]) -> Claim:
    """Claim (i): by kind of question, examples with the weights of their layers."""
    numbers = []
    for kind, examples in weights.items():
        ranks = {id: [_rank_correlation(w)] for id, w in examples}
        numbers.append(_number(f"rank correlation of W_Vd with depth, {kind} questions", bootstrap.mean(ranks)))
    return Claim(
        "i",
        "The weight of the video grows with depth, for questions about sound as for those about pictures.",
        "Spearman's correlation of a layer's W_Vd with its number, for each clip.",
        tuple(numbers),
    )


def _rank_correlation(weights: Float[np.ndarray, " L"]) -> float:
    found: Any = stats.spearmanr(np.arange(len(weights)), weights)
    return float(found.statistic)


def claims_of(tables: Sequence[Answers]) -> Iterator[Claim]:
    """Claims (ii) to (v) by all tables, as far as their answers have what a claim needs."""
    by_number: dict[str, Claim] = {}
    for answers in tables:
        for claim in _claims_of_one(answers):
            before = by_number.get(claim.number)
            numbers = (*before.numbers, *claim.numbers) if before else claim.numbers
            by_number[claim.number] = dataclasses.replace(claim, numbers=numbers)
    yield from (by_number[number] for number in sorted(by_number))


def _claims_of_one(answers: Answers) -> Iterator[Claim]:
    gain = _Gains(answers)
    tests: list[tuple[str, str, str, Callable[[], Iterator[Number]]]] = [
        (
            "ii",
            "Merging tokens across modalities ruins answers, merging within a modality does not.",
            "The gain of merging within a modality over merging across; and over no merging, which may be lost by no "
            "more than the margin.",
            lambda: _merging(gain),
        ),
        (
            "iii",
            "Dropping one modality as a whole hurts.",
            "A random choice of all tokens, less one of one modality alone, at the same budget, for questions about "
            "the other.",
            lambda: _dropping(gain),
        ),
        (
            "iv",
            "Each part of AccKV helps.",
            "AccKV less AccKV without the part.",
            lambda: _numbers(gain, WITHOUT),
        ),
        (
            "v",
            "AccKV beats H2O, SnapKV, LOOK-M and FastV at 20 % and at 10 %.",
            "AccKV less the rival, at the same budget.",
            lambda: _numbers(gain, {name: name for name in RIVALS}),
        ),
    ]
    for number, says, experiment, numbers in tests:
        if found := tuple(numbers()):
            yield Claim(number, says, experiment, found)


class _Gains:
    """Gains of one variant over another, in the parts of a task."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def of(self, policy: str, other: str, groups: Sequence[str] = (ALL,)) -> Iterator[tuple[str, Part, Estimate]]:
        """Label, part and gain, at every budget and turn that both have."""
        for budget in BUDGETS:
            own, rival = Variant(policy, budget), Variant(other, budget)
            if own not in self.answers.rows or rival not in self.answers.rows:
                continue
            for part in self.answers.parts():
                if part.group in groups:
                    ours, theirs = self.answers.scores(own, part), self.answers.scores(rival, part)
                    pair = (theirs, ours) if part.lower_is_better else (ours, theirs)
                    group = "" if part.group == ALL else f", {part.group}"
                    label = f"{part.task}, {part.turn} questions{group}, budget {budget}"
                    yield label, part, bootstrap.difference(*pair)


def _numbers(gain: _Gains, others: Mapping[str, str]) -> Iterator[Number]:
    for name, other in others.items():
        for label, _, found in gain.of("acckv", other):
            yield _number(f"{name}: {label}", found)


def _merging(gain: _Gains) -> Iterator[Number]:
    for label, _, found in gain.of("acckv", CROSS):
        yield _number(f"within over across: {label}", found)
    for label, part, found in gain.of("acckv", "acckv:merge=none"):
        yield _number(f"within over none: {label}", found, -part.margin)


def _dropping(gain: _Gains) -> Iterator[Number]:
    for kept, policy in ONLY.items():
        groups = ("spoken words", "instruments") if kept == "video" else ("video",)
        for label, _, found in gain.of("random", policy, groups):
            yield _number(f"both over {kept} alone: {label}", found)


def _number(about: str, found: Estimate, above: float = 0.0) -> Number:
    if not found.low <= found.high:  # of a single clip
        return Number(about, found, "open")
    return Number(about, found, "holds" if found.low > above else "fails" if found.high < above else "open")
