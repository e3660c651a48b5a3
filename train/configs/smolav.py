"""SmolAV 2 on two CPU cores.

The first three stages are version 1: one question at a time about clips of up to 30 seconds. Then come conversations,
transcripts and clips of up to two minutes. train/configs/smolav2_continued.py is these later stages alone.
"""

import dataclasses

from models.smolav.config import SmolAVConfig
from train.data.clips import ClipConfig
from train.data.features import PoolConfig
from train.data.questions import KINDS
from train.smolav.config import Bucket, Stage, TrainConfig


def clips(shortest: int, longest: int, *, augment: bool = True) -> ClipConfig:
    """Clips of so many seconds; instruments a little more often than digits, which are easier."""
    return ClipConfig(seconds=(shortest, longest), items=(2, 4), digits=0.4, augment=augment)


def busy(seconds: tuple[int, int], most: int, digits: float = 0.5, *, augment: bool = True) -> ClipConfig:
    """Clips of 4 to `most` things that may return: something to transcribe."""
    return ClipConfig(seconds=seconds, items=(4, most), repeats=True, digits=digits, augment=augment)


def talks(pool: PoolConfig, length: int, batch: int, questions: int = 14, targets: int = 110) -> Bucket:
    """All kinds of questions, in conversations of up to four."""
    return Bucket(pool, length, batch, questions, targets, KINDS, turns=4)


ONE = {
    "short": Bucket(PoolConfig(clips(3, 8), 1200, seed=1), length=320, batch=4),
    "medium": Bucket(PoolConfig(clips(9, 14), 1000, seed=2), length=512, batch=3),
    "long": Bucket(PoolConfig(clips(15, 30), 600, seed=3), length=960, batch=2),
}
TALKS = {
    "medium_talks": talks(ONE["medium"].pool, 832, batch=2, questions=20),
    "long_talks": talks(ONE["long"].pool, 1088, batch=2),
    "busy": talks(PoolConfig(busy((6, 20), 16), 1000, seed=4), 832, batch=2),
    "numbers": talks(PoolConfig(busy((6, 20), 16, digits=1.0), 300, seed=5), 832, batch=2),
    "notes": talks(PoolConfig(busy((6, 20), 16, digits=0.0), 300, seed=6), 832, batch=2),
    # All 26 tokens a second: two minutes are 3,120 tokens, and the language model tells 8,192 apart.
    "longest": talks(PoolConfig(busy((30, 120), 60), 150, seed=8), 3584, batch=1, questions=20, targets=300),
}
VALIDATION = {
    "validate_short": Bucket(PoolConfig(clips(3, 8, augment=False), 48, seed=7, split="validation"), 320, batch=4),
    "validate_long": Bucket(PoolConfig(ClipConfig(), 100, seed=9, split="validation"), 960, batch=2),
    "validate_talks": talks(
        PoolConfig(busy((10, 30), 12, augment=False), 24, seed=10, split="validation"), 1088, batch=2
    ),
}
TALKING = (("medium_talks", 0.3), ("long_talks", 0.1), ("busy", 0.4), ("numbers", 0.1), ("notes", 0.1))
LENGTHENING = (
    ("medium_talks", 0.2),
    ("long_talks", 0.25),
    ("busy", 0.25),
    ("numbers", 0.08),
    ("notes", 0.07),
    ("longest", 0.15),
)
CONFIG = TrainConfig(
    model=SmolAVConfig.smollm2_135m(),
    buckets=ONE | TALKS | VALIDATION,
    stages=(
        Stage("short", 250, 1e-3, 8e-4, (("short", 1.0),), "validate_short"),
        Stage("medium", 350, 8e-4, 5e-4, (("medium", 0.7), ("short", 0.3)), "validate_long"),
        Stage("long", 400, 5e-4, 2e-5, (("long", 0.6), ("medium", 0.25), ("short", 0.15)), "validate_long"),
        Stage("talks", 400, 6e-4, 4e-4, TALKING, "validate_talks"),
        Stage("longest", 200, 4e-4, 2e-5, LENGTHENING, "validate_talks"),
    ),
)
CONTINUED = dataclasses.replace(CONFIG, stages=CONFIG.stages[3:])
