"""Sound and frames as upstream's programs prepare them, and pictures as transformers' processor does."""

import numpy as np
import pytest
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.media.resize import resize_bicubic
from models.videollama2.preprocess import clip_banks, frame_numbers, pieces, pixels
from tests.models.videollama2 import seeded
from tests.models.videollama2.cases import GOLDEN, SOUNDS

EXPECTED = np.load(GOLDEN / "videollama2_preprocessing.npz")


@pytest.mark.parametrize("number", range(len(SOUNDS)))
def test_sound_equals_upstream(number):
    seconds, seed = SOUNDS[number]
    ours = clip_banks(seeded.sound(seed, seconds), with_frames=True)
    assert ours.shape == (2998, 128) and ours.dtype == np.float32
    # Both are rounded to bfloat16; where the exact values differ in the last place they may be rounded apart.
    difference = np.abs(ours[::61] - EXPECTED[f"clip_{number}"])
    assert (difference > 0).mean() < 5e-3 and (difference <= 2.0**-7 * np.abs(ours[::61]) + 1e-2).all()


def test_pieces_of_a_clip():
    samples = np.arange(50 * 16_000)
    expected = [samples[start * 96_000 :][:32_000] for start in range(8)]  # every 6 s, of the first 48 s
    np.testing.assert_array_equal(pieces(samples), np.concatenate(expected))
    np.testing.assert_array_equal(pieces(samples[:1000]), np.tile(samples[:1000], 8))


def test_of_sound_alone_the_start_is_heard():
    sound = seeded.sound(0, 33.0)
    np.testing.assert_array_equal(clip_banks(sound, with_frames=False), clip_banks(sound[:480_000], with_frames=False))
    assert not np.array_equal(clip_banks(sound, with_frames=False), clip_banks(sound, with_frames=True))


@pytest.mark.parametrize("count", [8, 16])
def test_frames_equal_upstream(count):
    ours = np.stack([frame_numbers(total, count) for total in range(1, 501)])
    np.testing.assert_array_equal(ours, EXPECTED[f"frames_{count}"])


def test_as_many_frames_as_wanted_are_kept_as_they_are():
    for count in range(1, 65):
        np.testing.assert_array_equal(frame_numbers(count, count), np.arange(count))


@pytest.mark.parametrize("size", [(480, 640), (360, 640), (97, 61), (384, 384)])
def test_pictures_equal_the_processors(size):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    frame[: size[0] // 2] = np.linspace(0, 255, size[1]).astype(np.uint8)[None, :, None]
    processor = SiglipImageProcessorPil(size={"height": 384, "width": 384})
    theirs = processor(frame, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = pixels(resize_bicubic(frame, 384, 384)[None])[0]
    # Pillow has finer weights than ours, which are torch's: some bytes differ by one. (Of upright pictures Pillow 13
    # resizes the height first, earlier ones and torch always the width; near clipped bytes that shows.)
    assert np.abs(ours - theirs).max() < 1.01 / 127.5 and (np.abs(ours - theirs) > 1e-6).mean() < 0.02
