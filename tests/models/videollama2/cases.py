"""The cases of the golden files: their number is their place in these lists. NumPy alone.

Two environment variables serve to compare with more cases than the golden files hold (tests/golden/README.md):
VIDEOLLAMA2_SEEDS, the number of seeds of each shape, and VIDEOLLAMA2_GOLDEN, the folder of the outputs.
"""

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = os.environ.get("VIDEOLLAMA2_SEEDS")
GOLDEN = Path(os.environ.get("VIDEOLLAMA2_GOLDEN", Path(__file__).parents[2] / "golden"))
VIDEO_TOKEN = -201  # upstream's id of the place where video and audio tokens go
VOCABULARY = 64


def seeds(usual: int) -> range:
    """Seeds of each shape: `usual` many of them are in the golden files."""
    return range(int(SEEDS) if SEEDS else usual)


@dataclasses.dataclass(frozen=True)
class StcCase:
    """A connector, and `frames` x `side`^2 patches."""

    features: int
    hidden: int
    frames: int
    side: int
    seed: int


STC = [
    StcCase(*shape, seed)
    for shape, seed in itertools.product([(12, 16, 4, 5), (8, 20, 5, 4), (16, 16, 2, 7), (20, 12, 8, 3)], seeds(6))
]

BEATS_SIZES: list[dict[str, int]] = [  # as in the encoder's `cfg`
    {"embed_dim": 12, "encoder_embed_dim": 16, "encoder_attention_heads": 2, "conv_pos": 8, "conv_pos_groups": 2},
    {"embed_dim": 16, "encoder_embed_dim": 16, "encoder_attention_heads": 4, "conv_pos": 5, "conv_pos_groups": 4},
    {"embed_dim": 10, "encoder_embed_dim": 24, "encoder_attention_heads": 3, "conv_pos": 16, "conv_pos_groups": 3},
    {"embed_dim": 12, "encoder_embed_dim": 12, "encoder_attention_heads": 1, "conv_pos": 128, "conv_pos_groups": 1},
]


def beats_sizes(sizes: dict[str, int]) -> dict[str, int]:
    """All sizes of a tiny encoder, given some."""
    rest = {"encoder_ffn_embed_dim": 20, "encoder_layers": 3, "num_buckets": 16, "max_distance": 20}
    return {**rest, "predictor_class": 5, "input_patch_size": 16, **sizes}


@dataclasses.dataclass(frozen=True)
class BeatsCase:
    """An encoder, and filter banks of `frames` x `bands`."""

    sizes: dict[str, int]
    frames: int
    bands: int
    seed: int


BEATS = [
    BeatsCase(sizes, frames, bands, seed)
    for sizes, (frames, bands), seed in itertools.product(BEATS_SIZES, [(100, 128), (40, 100)], seeds(3))
] + [BeatsCase(BEATS_SIZES[0], 600, 128, seed) for seed in seeds(2)]  # more patches than one block of queries


@dataclasses.dataclass(frozen=True)
class ModelCase:
    """A whole model; `frames` x `bands` of sound, none where frames are 0; words before and after the media."""

    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    num_frames: int
    image_size: int
    frames: int
    bands: int
    before: int
    after: int
    seed: int


MODEL = [
    ModelCase(*shape, seed)
    for shape, seed in itertools.product(
        [
            (4, 2, 8, False, 4, 20, 64, 128, 5, 9),
            (4, 1, 6, False, 8, 20, 33, 128, 1, 4),
            (3, 3, 8, True, 5, 33, 48, 128, 7, 6),
            (6, 2, 4, False, 2, 42, 160, 128, 3, 12),
            (4, 4, 6, False, 4, 25, 0, 128, 6, 8),
        ],
        seeds(5),
    )
]


def model_config(case: ModelCase) -> dict[str, Any]:
    """The config.json of a tiny model: its keys are upstream's, except for the two sections of tower sizes."""
    width = case.heads * case.head_dim
    return {
        "model_type": "videollama2_qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "intermediate_size": 28,
        "hidden_act": "silu",
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "tie_word_embeddings": case.tied,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_frames": case.num_frames,
        "mm_vision_tower": "siglip-tiny",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "stc_connector_v35",
        "mm_hidden_size": 16,
        "mm_audio_tower": "audio_tower.bin",
        "mm_projector_a_type": "mlp2x_gelu",
        "mm_hidden_size_a": 12,
        "hidden_size_a": width,
        "mm_vision_tower_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": case.image_size,
            "patch_size": 5,
        },
        "mm_audio_tower_config": beats_sizes(
            {
                "embed_dim": 10,
                "encoder_embed_dim": 12,
                "encoder_attention_heads": 3,
                "conv_pos": 8,
                "conv_pos_groups": 2,
            }
        ),
    }


def question_ids(case: ModelCase) -> list[int]:
    """Token ids with upstream's mark where the media go."""
    words = np.random.default_rng(case.seed).integers(3, VOCABULARY, case.before + case.after).tolist()
    return [*words[: case.before], VIDEO_TOKEN, *words[case.before :]]


SOUNDS = [(0.03, 0), (0.7, 1), (1.9999, 2), (2.0, 3), (5.3, 4), (16.0, 5), (30.01, 6), (47.77, 7), (61.3, 8)]
"""Seconds and seed of sounds."""
