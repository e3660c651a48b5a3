"""Settings of a training run: the model, the pools of clips, the stages."""

import dataclasses
import runpy
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.smolav.config import SmolAVConfig
from train.data.features import PoolConfig
from train.data.questions import WORD_KINDS, Kind


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Batches of one shape.

    Attributes:
        pool: clips to draw from.
        length: tokens per row; what the media leave free is filled with questions.
        batch: rows.
        questions: most questions per clip.
        targets: most answer tokens per row.
        kinds: of questions.
        turns: most questions of a conversation.
    """

    pool: PoolConfig
    length: int
    batch: int
    questions: int = 12
    targets: int = 60
    kinds: tuple[Kind, ...] = WORD_KINDS
    turns: int = 1


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: for the logs.
        steps: optimizer steps.
        rate: learning rate at its start, reached by a linear warm-up in the first stage.
        rate_end: learning rate at its end, reached along half a cosine.
        mix: (bucket, probability) of a step's batch.
        validate: bucket of validation clips.
    """

    name: str
    steps: int
    rate: float
    rate_end: float
    mix: tuple[tuple[str, float], ...]
    validate: str


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run; everything that decides its result.

    Attributes:
        model: sizes of the model.
        seed: of all randomness.
        pictures: how many training pictures are used.
        buckets: training and validation batches by name.
        stages: in order.
        align_bucket: whose sounds the projectors are first fitted to.
        align_pictures: how many pictures they are first fitted to (all are encoded before the first step).
        align_steps: steps that fit the projectors to the answer words' embeddings, before the language model is used.
        align_rate: their learning rate.
        media_rate: factor on the learning rate for projectors (the updates of the language model have 1).
        weight_decay: of matrices.
        clip_norm: largest global norm of a gradient.
        warmup: steps of linear warm-up.
        drop: probability that a clip is shown without its sound, and again without its pictures.
        save_every: steps between checkpoints.
        validate_every: steps between validations.
        keep: checkpoints kept.
        log_every: steps between two rows of the training log.
    """

    model: SmolAVConfig
    buckets: dict[str, Bucket]
    stages: tuple[Stage, ...]
    seed: int = 0
    pictures: int = 45_000
    align_bucket: str = "short"
    align_pictures: int = 12_000
    align_steps: int = 600
    align_rate: float = 2e-3
    media_rate: float = 0.5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warmup: int = 40
    drop: float = 0.05
    save_every: int = 100
    validate_every: int = 200
    keep: int = 3
    log_every: int = 10

    def identity(self) -> dict[str, Any]:
        """What a run that resumes must not change, as nested dicts: all that decides what is trained."""
        reported = ("save_every", "validate_every", "keep", "log_every")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in reported}

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that step number `step` belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]


DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "smolav.py"


def read_config(path: Path) -> TrainConfig:
    """Runs a configuration file and returns its CONFIG.

    Raises:
        UserError: if there is no such file, it is no Python, or it defines no CONFIG.
    """
    if not path.is_file():
        raise UserError(f"There is no configuration file {path}; train/configs holds some.")
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except SyntaxError as error:
        raise UserError(f"{path} is no Python: {error.msg} in line {error.lineno}.") from error
    if not isinstance(config, TrainConfig):
        raise UserError(f"{path} must define CONFIG, a train.smolav.config.TrainConfig.")
    return config
