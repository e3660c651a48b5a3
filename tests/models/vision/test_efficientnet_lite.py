"""EfficientNet-Lite0 with its real weights against plain torch.nn.functional, batch normalisation not folded."""

from collections.abc import Callable

import chex
import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from models.hub.weights import fetch
from models.layers.depthwise import grouped, shifted
from models.layers.init import FastRngs
from models.readers.legacy_pickle import read_legacy_state_dict
from models.vision.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig, load_efficientnet_lite0
from tests.models.parameters import assert_fits
from tests.tolerances import FP32, LOGITS

# Lite0 from the paper's table: (expansion, channels, blocks, stride, kernel)
TABLE = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5))
TABLE += ((6, 320, 1, 1, 3),)


def reference(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map before the head and the logits; images are [B, Y, X, 3], 0 to 255."""
    w = {name: torch.from_numpy(a) for name, a in read_legacy_state_dict(fetch("efficientnet-lite0")).items()}

    def conv(x: torch.Tensor, name: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
        kernel = w[name + ".weight"]
        pads = [
            max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(x.shape[2:], kernel.shape[2:], strict=True)
        ]
        y, z = pads
        return F.conv2d(F.pad(x, (z // 2, z - z // 2, y // 2, y - y // 2)), kernel, stride=stride, groups=groups)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, scale, bias = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, bias, eps=1e-3)

    x = (torch.from_numpy(images).float().permute(0, 3, 1, 2) - 127) / 128
    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    index = 0
    for expansion, _, blocks, first_stride, _ in TABLE:
        for number in range(blocks):
            name, stride, before = f"_blocks.{index}.", first_stride if number == 0 else 1, x
            if expansion > 1:
                x = F.relu6(norm(conv(x, name + "_expand_conv"), name + "_bn0"))
            x = F.relu6(norm(conv(x, name + "_depthwise_conv", stride, x.shape[1]), name + "_bn1"))
            x = norm(conv(x, name + "_project_conv"), name + "_bn2")
            x = x + before if number else x
            index += 1
    head = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return x.permute(0, 2, 3, 1).numpy(), F.linear(head, w["_fc.weight"], w["_fc.bias"]).numpy()


def test_lite0_equals_torch() -> None:
    graph, params = load_efficientnet_lite0()
    ramp = np.linspace(0, 255, 224)[:, None, None] * np.array([1, 0.5, 0.2])
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3))
    images = np.stack([np.broadcast_to(ramp, (224, 224, 3)), noise]).astype(np.uint8)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        features = jax.jit(lambda p, x: nnx.merge(graph, p).features(x))(params, images)
        logits = jax.jit(lambda p, x: nnx.merge(graph, p).logits(x))(params, features)
    expected_features, expected_logits = reference(images)
    assert features.shape == (2, 7, 7, 320) and logits.shape == (2, 1000)
    np.testing.assert_allclose(features, expected_features, **LOGITS)
    np.testing.assert_allclose(logits, expected_logits, **LOGITS)


def test_lite0_follows_the_table_and_its_parameters_fit() -> None:
    config = EfficientNetLiteConfig.lite0()
    expected = [
        (expansion, channels, stride if number == 0 else 1, kernel)
        for expansion, channels, blocks, stride, kernel in TABLE
        for number in range(blocks)
    ]
    assert [(b.expansion, b.features_out, b.stride, b.kernel) for b in config.blocks] == expected
    _, params = load_efficientnet_lite0()
    assert_fits(params, lambda: EfficientNetLite(config, rngs=FastRngs(0)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(9, 12), (3, 1)])
@pytest.mark.parametrize("same", [True, False])
def test_shifted_products_equal_grouped_convolution(same: bool, shape: tuple[int, int], size: int, stride: int) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, *shape, 6)).astype(np.float32)
    kernel = random.standard_normal((size, size, 6)).astype(np.float32)
    lessons = jax.random.normal(jax.random.key(0), grouped(x, kernel, stride, same).shape)

    def run(convolution: Callable[..., jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        y, back = jax.vjp(lambda a, w: convolution(a, w, stride, same), x, kernel)
        return y, back(lessons)

    chex.assert_trees_all_close(*map(jax.jit(run, static_argnums=0), (shifted, grouped)), **FP32)
