"""Preprocessing of pictures, videos and sound against transformers' processors that run without torchvision."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from models.errors import UserError
from models.media.resize import resize_bicubic
from models.media.waveform import SAMPLE_RATE
from models.qwen2_5_omni import images
from models.qwen2_5_omni.config import VisionConfig
from models.qwen2_5_omni.sound import mel_features
from tests.tolerances import FP32, LOGITS

CONFIG = VisionConfig.published(3584)
BYTE = 1 / 255 / 0.26  # what one level of brightness is after normalisation


def test_sizes_equal_transformers():
    random = np.random.default_rng(0)
    for _ in range(1000):
        height, width = np.exp(random.uniform(np.log(8), np.log(3000), 2)).astype(int).tolist()
        least = 784 * int(random.choice([1, 4, 128]))
        pixels = (least, least * int(random.choice([1, 6, 1000])))
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(UserError, match="too narrow for its length; crop it to 1:200"):
                images.fitted_size(height, width, pixels, 28)
        else:
            expected = smart_resize(height, width, 28, *pixels)
            assert images.fitted_size(height, width, pixels, 28) == expected


@pytest.mark.parametrize(
    ("height", "width", "least", "most"),
    [(56, 84, 784, 10**6), (90, 130, 784, 10**6), (20, 40, 3136, 10**6), (333, 500, 784, 100_000)],
)
def test_pictures_equal_transformers(height, width, least, most):
    """As it is, rounded to the nearest units, enlarged and shrunk."""
    rows, columns = np.indices((height, width))
    waves = [np.sin(rows / 17) * np.cos(columns / 23 + colour) for colour in range(3)]
    picture = (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": least, "longest_edge": most})
    theirs = processor(picture, return_tensors="np", input_data_format="channels_last")
    fitted = resize_bicubic(picture, *images.fitted_size(*picture.shape[:2], (least, most), 28))
    ours = images.patchify(fitted[None], CONFIG)
    assert [1, fitted.shape[0] // 14, fitted.shape[1] // 14] == theirs["image_grid_thw"][0].tolist()
    exact = picture.shape == fitted.shape
    np.testing.assert_allclose(ours[0], theirs["pixel_values"], rtol=0, atol=1e-5 if exact else 2.1 * BYTE)


def test_order_of_values():
    """Each value by loops: (frame pair, unit row, unit column, row and column in it, channel, frame, row, column)."""
    config = VisionConfig.tiny(patch_size=2)
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
    patches = images.patchify(frames, config)
    assert patches.shape == (2, 24, 24) and patches.dtype == np.float32
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    for pair in range(2):
        expected = [
            (frames[min(2 * pair + second, 2), y + a, x + b, colour] / 255 - mean[colour]) / std[colour]
            for unit_y in range(0, 8, 4)
            for unit_x in range(0, 12, 4)
            for y in (unit_y, unit_y + 2)
            for x in (unit_x, unit_x + 2)
            for colour in range(3)
            for second in range(2)
            for a in range(2)
            for b in range(2)
        ]
        np.testing.assert_allclose(patches[pair].ravel(), expected, **FP32)


def test_batches_are_the_patches_and_little_is_held_as_floats():
    frames = np.random.default_rng(0).integers(0, 256, (27, 112, 140, 3), np.uint8)
    whole = images.patchify(frames, CONFIG)
    assert whole.shape == (14, 80, 1176)
    seen = np.concatenate(list(images.batches(frames, CONFIG, 4)))
    np.testing.assert_array_equal(seen[:14], whole)
    assert len(seen) == 16 and not seen[14:].any()

    long = np.zeros((600, 112, 140, 3), np.uint8)  # 113 MB as floats
    tracemalloc.start()
    count = sum(len(batch) for batch in images.batches(long, CONFIG, 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300 and peak < 10e6


def test_frame_pixels():
    """An even share of the clip's pixels, but never below the least of a frame."""
    assert images.frame_pixels(2) == (100_352, 602_112)
    for frames in range(2, 769, 2):
        budget = int(128_000 * 28 * 28 * 0.9) * 2 // frames
        assert images.frame_pixels(frames) == (100_352, max(min(602_112, budget), 105_369))


def test_number_of_frames():
    for total in range(2, 2000, 7):
        for rate in (0.3, 1.0, 2.0, 23.976, 25.0, 29.97, 60.0):
            number = images.number_of_frames(total, rate)
            wanted = min(max(total / rate * 2, 4), math.floor(min(768, total) / 2) * 2, total)
            assert number == math.floor(wanted / 2) * 2
    assert images.number_of_frames(1, 25.0) == 1


def test_chosen_frames_equal_the_published_rule():
    """Of even numbers, as `number_of_frames` gives: then nothing is halfway between two frames."""
    for total in [*range(2, 200), *range(200, 6000, 37)]:
        for number in {2, 4, 30, 60, total // 2 * 2, 768, total // 24 * 2} - {0}:
            if number <= min(total, 768):
                spread = torch.linspace(0, total - 1, number).round().long()
                np.testing.assert_array_equal(images.spread_frames(total, number), spread.numpy())


@pytest.fixture(scope="module")
def extractor():
    return WhisperFeatureExtractor(feature_size=128, chunk_length=300)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 16_000, 41_234, 300 * SAMPLE_RATE - 170, 300 * SAMPLE_RATE])
@pytest.mark.parametrize("loudest", ["first", "last"])
def test_sound_equals_transformers(extractor, samples, loudest):
    """Also where the loudest value is in frames beyond the sound's end, or mirrored at 300 s."""
    wave = 0.01 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    wave[-1 if loudest == "last" else 0] = 1
    theirs = extractor(
        [wave], sampling_rate=SAMPLE_RATE, return_attention_mask=True, padding="max_length", return_tensors="np"
    )
    ours = mel_features(wave)
    assert ours.shape == (128, theirs["attention_mask"].sum()) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs["input_features"][0, :, : ours.shape[1]], **LOGITS)


def test_bad_sound():
    with pytest.raises(UserError, match=r"lasts 300\.1 s, and Qwen2\.5-Omni hears 300 s at most"):
        mel_features(np.zeros(300 * SAMPLE_RATE + 1000, np.float32))
    with pytest.raises(UserError, match="The sound is empty"):
        mel_features(np.zeros(0, np.float32))
