"""The trainable classifiers as pure functions: against torch in training, under vmap and on a mesh."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from models.errors import UserError
from models.layers.conv import folded
from models.vision.classifier import CLASSIFIERS, Classifier
from models.vision.efficientnet_lite import EPSILON, EfficientNetLite, EfficientNetLiteConfig
from models.vision.mobilenet_v2 import MobileNetV2, MobileNetV2Config
from models.vision.resnet import ResNet, ResNetConfig
from tests.models import torch_classifiers as theirs
from tests.models.hf_classifiers import apply
from tests.models.videollama2 import seeded
from tests.tiers import quick_first
from tests.tolerances import FP32, LOGITS

TINY = {
    "resnet": (Classifier(ResNet, ResNetConfig.tiny()), theirs.resnet, 1e-5),
    "mobilenet_v2": (Classifier(MobileNetV2, MobileNetV2Config.tiny()), theirs.mobilenet_v2, 1e-5),
    "efficientnet_lite": (
        Classifier(EfficientNetLite, EfficientNetLiteConfig.tiny()),
        theirs.efficientnet_lite,
        EPSILON,
    ),
}
IMAGES = seeded.image(0, (16, 11, 14, 3))  # odd and even sizes: strides of 2 pad them differently
LABELS = np.arange(16) % 10


@functools.cache
def initial(name):
    """Parameters and statistics of two seeds, with a leading axis; statistics are not those of a fresh network."""
    classifier, _, _ = TINY[name]
    init = jax.jit(jax.vmap(classifier.init))
    params, stats = jax.device_get(init(jax.random.split(jax.random.key(0), 2)))
    waves = jax.tree.map(lambda x: np.abs(np.sin(np.arange(x.size, dtype=np.float32).reshape(x.shape))), stats)
    return params, jax.tree.map(lambda x, wave: x + np.float32(0.1) * wave, stats, waves)


def one(tree, seed=0):
    return jax.tree.map(lambda x: x[seed], tree)


def step(classifier, params, stats, images):
    """Loss, logits, gradient and moved statistics."""

    def loss(params):
        outputs, moved = classifier.apply(params, stats, images, train=True)
        told = jax.nn.log_softmax(outputs.logits)[jnp.arange(len(LABELS)), LABELS]
        return -jnp.mean(told), (outputs.logits, moved)

    (value, (logits, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, logits, gradient, moved


run = jax.jit(step, static_argnums=0)
evaluate = functools.partial(apply, train=False)


@functools.cache
def alone(name, seed):
    """What one network gives on one device."""
    params, stats = initial(name)
    return jax.device_get(run(TINY[name][0], one(params, seed), one(stats, seed), IMAGES))


def close(one, other, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def assert_equal_outputs(found, expected):
    """Equal in units of their spread: in evaluation a fresh network's outputs are small."""
    spread = np.std(expected)
    np.testing.assert_allclose(found / spread, expected / spread, **LOGITS)


def assert_same_step(found, expected, tolerance):
    """Loss, logits and statistics are equal; gradients up to single units.

    A ReLU whose input is nothing but a rounding error away from zero passes the gradient in one program and not in
    another: that moves a few entries by about 1 %.
    """
    close((found[0], found[1], found[3]), (expected[0], expected[1], expected[3]), tolerance)
    gradients = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(each[2])]) for each in (found, expected)]
    assert np.linalg.norm(gradients[0] - gradients[1]) < 5e-3 * np.linalg.norm(gradients[1])


@pytest.mark.parametrize("name", quick_first(TINY))
def test_training_equals_torch(name):
    _, reference, epsilon = TINY[name]
    p, s = (theirs.to_torch(one(tree)) for tree in initial(name))
    jax.tree.map(lambda x: x.requires_grad_(), p)
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    logits = reference(theirs.Run(epsilon, True), p, s, images)
    loss = F.cross_entropy(logits, torch.from_numpy(LABELS))
    loss.backward()
    expected = (loss.item(), logits.detach().numpy(), jax.tree.map(lambda x: x.grad.numpy(), p), s)
    assert_same_step(alone(name, 0), expected, LOGITS)


@pytest.mark.parametrize("name", TINY)
def test_evaluation_equals_torch(name):
    classifier, reference, epsilon = TINY[name]
    params, stats = (one(tree) for tree in initial(name))
    outputs, same = evaluate(classifier, params, stats, IMAGES)
    p, s = theirs.to_torch(params), theirs.to_torch(stats)
    expected = reference(theirs.Run(epsilon, False), p, s, torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()))
    assert_equal_outputs(outputs.logits, expected.numpy())
    head = params["classifier"]
    assert_equal_outputs(outputs.features @ head["kernel"] + head["bias"][None], outputs.logits)
    chex.assert_trees_all_equal(same, stats)


@pytest.mark.parametrize("name", quick_first(("resnet", "mobilenet_v2")))
def test_seeds_under_vmap(name):
    params, stats = initial(name)
    together = jax.jit(jax.vmap(functools.partial(step, TINY[name][0]), (0, 0, None)))
    found = jax.device_get(together(params, stats, IMAGES))
    for seed in range(2):
        assert_same_step(one(found, seed), alone(name, seed), FP32)


@pytest.mark.parametrize("name", quick_first(("resnet", "mobilenet_v2")))
def test_a_divided_batch(name):
    """Eight devices with two pictures each give what one gives with sixteen: statistics are of the whole batch."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        whole = jax.device_put(one(initial(name)), P())
        found = run(TINY[name][0], *whole, jax.device_put(IMAGES, P("data")))
    assert_same_step(found, alone(name, 0), FP32)


@pytest.mark.parametrize("name", TINY)
def test_a_step_lowers_the_loss(name):
    params, stats = (one(tree) for tree in initial(name))
    value, _, gradient, moved = alone(name, 0)
    better = jax.tree.map(lambda p, g: p - np.float32(0.05) * g, params, gradient)
    assert run(TINY[name][0], better, moved, IMAGES)[0] < value - 0.01


def test_bfloat16():
    """Cast parameters run the convolutions in bfloat16; statistics stay float32."""
    params, stats = (one(tree) for tree in initial("resnet"))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    outputs, moved = apply(TINY["resnet"][0], half, stats, IMAGES, train=True)
    assert outputs.logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {jnp.dtype(jnp.float32)}
    expected = alone("resnet", 0)[1]
    assert jnp.linalg.norm(outputs.logits.astype(jnp.float32) - expected) < 0.1 * jnp.linalg.norm(expected)


def test_folded_normalisation():
    classifier, _, _ = TINY["efficientnet_lite"]
    params, stats = jax.tree.map(np.asarray, one(initial("efficientnet_lite")))
    whole = unflatten_dict(flatten_dict(params) | flatten_dict(stats))
    plain = Classifier(EfficientNetLite, dataclasses.replace(classifier.config, normed=False))
    expected, _ = evaluate(classifier, params, stats, IMAGES)
    found, none = evaluate(plain, folded(whole, EPSILON), {}, IMAGES)
    assert_equal_outputs(found.logits, expected.logits)
    assert none == {}


def test_equal_classifiers_are_one_static_argument():
    assert CLASSIFIERS["resnet18"](10, "cifar", 0.5) == CLASSIFIERS["resnet18"](10, "cifar", 0.5)
    assert len({factory(10, "cifar") for factory in [*CLASSIFIERS.values()] * 2}) == len(CLASSIFIERS)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(("stem", "size"), quick_first([("cifar", 32), ("imagenet", 64)]))
def test_registry(name, stem, size):
    classifier = CLASSIFIERS[name](7, stem, 0.5)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    params, stats = classifier.shapes()
    outputs, moved = jax.eval_shape(functools.partial(classifier.apply, train=True), params, stats, images)
    assert outputs.logits.shape == (2, 7) and outputs.features.shape == (2, params["classifier"]["kernel"].shape[0])
    assert moved == stats


def test_bad_input():
    classifier, _, _ = TINY["resnet"]
    shapes = classifier.shapes()
    for shape, train, told in (
        ((2, 3, 8, 8), False, "put the colours last"),
        ((8, 8, 3), False, "put the colours last"),
    ):
        with pytest.raises(ValueError, match=told):
            jax.eval_shape(functools.partial(classifier.apply, train=train), *shapes, jnp.zeros(shape))
    with pytest.raises(ValueError, match="more than one value of each feature in training"):
        jax.eval_shape(functools.partial(classifier.apply, train=True), *shapes, jnp.zeros((1, 1, 1, 3)))
    with pytest.raises(UserError, match="no stem 'vgg'; take one of cifar, imagenet"):
        CLASSIFIERS["efficientnet_lite0"](10, "vgg")
