"""Settings of an experiment with SmolAV."""

import dataclasses
from typing import ClassVar, Self

from mergenet_jax import MergeConfig, Pair
from models.errors import UserError
from train.mergenet.arms import ARMS, Arm

PREFIX = "smolav_"
AV_ARMS = tuple(name for name, arm in ARMS.items() if not arm.own and not arm.distils)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of an arm and a seed.

    The source is the SmolAV that comes with the source code; the target a fresh one, of which only the projectors are
    trained.

    Attributes:
        pairs: kernels of the source's media embedder that are read, and of the target's that are written.
        init_pairs: kernels that begin as the source's in the arms "start" and "plus", and that "direct" copies.
        width: hidden width of the target's projectors.
        pictures: training pictures of the target, other ones for every seed.
        clips: clips whose sounds it is trained on, likewise.
        source_pictures: training pictures of a source that keeps learning; the target's are among them.
        source_clips: likewise clips.
        steps: optimiser steps.
        rate: learning rate of the target, along half a cosine to zero.
        source_rate: of a source that keeps learning, likewise.
        batch_pictures: pictures of a step.
        batch_sounds: audio tokens of a step.
        merge: options of the transfer.
        plus: options of the transfer in the arms "plus".
        test_pictures: held-out pictures of which the nearest word is looked up.
        test_clips: held-out clips of whose audio tokens the nearest word is looked up.
        question_clips: held-out clips that the language model answers all questions about.
        question_seconds: longest of these clips.
    """

    SMOKE_DATA: ClassVar[str] = "a few pictures and clips"

    pairs: tuple[Pair, ...]
    init_pairs: tuple[Pair, ...]
    width: int = 64
    pictures: int = 300
    clips: int = 60
    source_pictures: int = 3_000
    source_clips: int = 200
    steps: int = 120
    rate: float = 2e-3
    source_rate: float = 5e-4
    batch_pictures: int = 32
    batch_sounds: int = 512
    merge: MergeConfig = MergeConfig()
    plus: MergeConfig = MergeConfig.plus()
    test_pictures: int = 1_000
    test_clips: int = 100
    question_clips: int = 24
    question_seconds: int = 14

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"{field.name} must be at least 1, not {value}.")
        for name in ("rate", "source_rate"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must lie between 0 and 1, not {getattr(self, name)}.")
        for own, all_ in (("pictures", "source_pictures"), ("clips", "source_clips")):
            if getattr(self, own) > getattr(self, all_):
                raise UserError(
                    f"{own} ({getattr(self, own)}) are drawn from {all_} ({getattr(self, all_)}); raise the latter."
                )

    def smoke_version(self) -> Self:
        """The recipe for a look at whether it runs."""
        return dataclasses.replace(
            self,
            width=8,
            pictures=16,
            clips=3,
            source_pictures=24,
            source_clips=4,
            steps=4,
            batch_pictures=4,
            batch_sounds=16,
            merge=dataclasses.replace(self.merge, layers=1, cycle=2),
            plus=dataclasses.replace(self.plus, layers=1, cycle=2),
            test_pictures=16,
            test_clips=2,
            question_clips=1,
        )


def find_arm(name: str) -> Arm:
    """The arm of a name; they mean what they do for pictures.

    Raises:
        UserError: if there is none.
    """
    if name not in AV_ARMS:
        raise UserError(f"There is no arm {name!r}; take one or more of {', '.join(AV_ARMS)}.")
    return ARMS[name]
