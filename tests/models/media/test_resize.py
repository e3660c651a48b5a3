"""Resizing against torch and PIL."""

import numpy as np
import pytest
import torch
from PIL import Image

from models.media.resize import cubic, kernel_matrix, resize_bicubic, triangle

SIZES = [  # height, width, new height, new width: smaller, larger, either, one side only, and much smaller
    (100, 120, 56, 84),
    (56, 84, 112, 140),
    (30, 200, 28, 224),
    (45, 60, 45, 84),
    (700, 900, 28, 56),
]


def picture(height, width, name):
    if name == "noise":
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    waves = np.sin(np.arange(height)[:, None, None] / 17) * np.cos(np.arange(width)[None, :, None] / 23 + np.arange(3))
    return (127.5 + 127.4 * waves).astype(np.uint8)


@pytest.mark.parametrize("name", ["noise", "waves"])
@pytest.mark.parametrize(("height", "width", "new_height", "new_width"), SIZES)
def test_bicubic_equals_torch_on_bytes(height, width, new_height, new_width, name):
    image = picture(height, width, name)
    ours = resize_bicubic(image, new_height, new_width)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(batch, (new_height, new_width), mode="bicubic", antialias=True)
    off = np.abs(ours.astype(int) - theirs[0].permute(1, 2, 0).numpy())
    assert ours.shape == (new_height, new_width, 3) and ours.dtype == np.uint8
    assert off.max() <= 1 and (off > 0).mean() < 1e-3  # sums of single precision round a few halves otherwise


@pytest.mark.parametrize(("height", "width", "new_height", "new_width"), SIZES)
def test_bicubic_is_close_to_pil(height, width, new_height, new_width):
    image = picture(height, width, "noise") // 2 + 64  # nothing to clip between the passes, whose order PIL chooses
    theirs = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
    off = np.abs(resize_bicubic(image, new_height, new_width).astype(int) - theirs)
    assert off.max() <= 1  # PIL has weights of more bits


@pytest.mark.parametrize(("kernel", "mode"), [(cubic, "bicubic"), (triangle, "bilinear")])
@pytest.mark.parametrize(("height", "width", "new_height", "new_width"), SIZES)
def test_weights_equal_torch(kernel, mode, height, width, new_height, new_width):
    image = np.random.default_rng(0).standard_normal((height, width))
    rows, columns = kernel_matrix(height, new_height, kernel), kernel_matrix(width, new_width, kernel)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], (new_height, new_width), mode=mode, antialias=True
    )
    np.testing.assert_allclose(rows @ image @ columns.T, theirs[0, 0].numpy(), rtol=0, atol=1e-6)


def test_same_size_is_the_same_picture():
    image = picture(28, 56, "noise")
    assert resize_bicubic(image, 28, 56) is image
