"""The picture of what is kept: its colours and its timeline."""

import numpy as np

from acckv_jax import Modality
from eval.scoreboard.kept import Kept
from eval.scoreboard.retention import ALONE, MERGED, _coloured, _peaks, _thumbnails, retention_map, timeline
from models.media.clip import Media


def test_colours():
    tokens = np.zeros((1, 2, 4), np.float32)
    tokens[0, :, 1], tokens[0, :, 2], tokens[0, 0, 3] = 1, 3, 1
    np.testing.assert_allclose(_coloured(tokens)[0], [[1, 1, 1], ALONE, MERGED, (1 + ALONE) / 2])


def test_the_timeline():
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 128, 64, 3), np.uint8)
    found = _thumbnails(frames, 2.0)
    assert [(a, b) for a, b, _ in found] == [(i / 2, (i + 1) / 2) for i in range(6)]
    assert [frame[0, 0, 0] for *_, frame in found] == list(range(6)) and found[0][2].shape == (64, 32, 3)
    assert _peaks(np.array([0.1, -0.5, 0.2], np.float32)).tolist() == np.float32([0.1, 0.5, 0.2]).tolist()


def test_a_clip_without_sound_or_without_pictures():
    modality = np.array([Modality.TEXT, Modality.VIDEO, Modality.VIDEO], np.int8)
    kept = Kept(np.ones((2, 1, 3), np.float32), modality)
    assert timeline(Media(np.zeros((2, 8, 8, 3), np.uint8), None)).count("<image") == 1
    assert timeline(Media(None, np.zeros(16000, np.float32))).count("<image") == 0
    assert retention_map(kept, 2.0).startswith("<svg") and retention_map(kept, 2.0).count("<image") == 1
    both = Kept(kept.tokens, np.array([Modality.TEXT, Modality.VIDEO, Modality.AUDIO], np.int8))
    assert retention_map(both, 2.0).count("<image") == 2
