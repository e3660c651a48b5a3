"""The arithmetic of positions, against the plainest way to write it."""

import numpy as np
import pytest
import torch
from torch import nn

from models.qwen2_5_omni.positions import audio_tokens, chunk_numbers, grid_positions, grid_times, line_positions


@pytest.mark.parametrize("mel_frames", [3, 4, 5, 99, 100, 101, 102, 103, 200, 601, 30000])
def test_audio_tokens_are_what_the_tower_makes(mel_frames: int) -> None:
    frames = torch.zeros(1, 1, mel_frames)
    convolved = nn.functional.conv1d(frames, torch.zeros(1, 1, 3), stride=2, padding=1)
    assert audio_tokens(mel_frames) == nn.functional.avg_pool1d(convolved, 2, stride=2).shape[-1]


def test_chunks_by_a_loop_over_tokens() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        steps = rng.choice([0.0, 0.3, 1, 7, 49.9, 50, 120], rng.integers(1, 6))
        times = np.cumsum(np.concatenate([[0], rng.choice(steps, rng.integers(0, 30))]))
        expected, chunk = [], 0
        for time in times:
            chunk += time >= 50 * (chunk + 1)  # at most one chunk further per token
            expected.append(chunk)
        assert chunk_numbers(times, 50).tolist() == expected


def test_times_are_rounded_down_in_single_precision() -> None:
    assert grid_times(5, 2 / 3, 25).tolist() == [0, 16, 33, 50, 66]
    assert (np.arange(42) * (2 / 41) * 25)[41] == 50.0
    assert grid_times(42, 2 / 41, 25)[41] == 49


def test_reading_order() -> None:
    assert grid_positions(np.array([0, 25]), 1, 2).tolist() == [[0, 0, 25, 25], [0, 0, 0, 0], [0, 1, 0, 1]]
    assert line_positions(3).tolist() == [[0, 1, 2]] * 3
