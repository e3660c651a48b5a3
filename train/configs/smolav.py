"""SmolAV on two CPU cores: about an hour and a half at some 300 tokens per second."""

from models.smolav.config import SmolAVConfig
from train.data.clips import ClipConfig
from train.data.features import PoolConfig
from train.smolav.config import Bucket, Stage, TrainConfig


def clips(shortest: int, longest: int, *, augment: bool = True) -> ClipConfig:
    """Clips of so many seconds; instruments a little more often than digits, which are easier."""
    return ClipConfig(seconds=(shortest, longest), items=(2, 4), digits=0.4, augment=augment)


TRAIN = {
    "short": Bucket(PoolConfig(clips(3, 8), 1200, seed=1), length=320, batch=4),
    "medium": Bucket(PoolConfig(clips(9, 14), 1000, seed=2), length=512, batch=3),
    "long": Bucket(PoolConfig(clips(15, 30), 600, seed=3), length=960, batch=2),
}
VALIDATION = {
    "validate_short": Bucket(PoolConfig(clips(3, 8, augment=False), 48, seed=7, split="validation"), 320, batch=4),
    "validate_long": Bucket(PoolConfig(ClipConfig(), 100, seed=9, split="validation"), 960, batch=2),
}
CONFIG = TrainConfig(
    model=SmolAVConfig.smollm2_135m(),
    buckets=TRAIN | VALIDATION,
    stages=(
        Stage("short", 250, 1e-3, 8e-4, (("short", 1.0),), "validate_short"),
        Stage("medium", 350, 8e-4, 5e-4, (("medium", 0.7), ("short", 0.3)), "validate_long"),
        Stage("long", 400, 5e-4, 2e-5, (("long", 0.6), ("medium", 0.25), ("short", 0.15)), "validate_long"),
    ),
)
