"""Fitting projectors to words, on made-up things that a projector can tell apart."""

import jax
import numpy as np
import pytest
from flax import nnx

from models.layers.init import abstract_params
from models.smolav.modeling import MediaEmbedder
from tests.train.synthetic import MODEL, POOL, SOURCES, SyntheticPictures, SyntheticPool
from train.smolav.align import Examples, align, answer_words, initial_media, projector_accuracy

WORDS = answer_words(SOURCES)
TABLE = np.random.default_rng(3).normal(size=(len(WORDS), MODEL.decoder.hidden_size)).astype(np.float32)
SHOWN = np.arange(4, 14)


def examples() -> Examples:
    return Examples.of(WORDS, SyntheticPictures(), SHOWN, SyntheticPool(), range(POOL.count), MODEL.audio_rate)


def test_batches_hold_things_beside_their_words() -> None:
    own = examples()
    pictures, words, sounds, heard = own.draw(np.random.default_rng(0), 64, 4000)
    vectors = SyntheticPictures().vectors
    np.testing.assert_array_equal(pictures[:, 0], vectors[words, 0])
    assert set(words) == set(SOURCES.picture_labels[SHOWN])
    by_word = {word: own.sounds[own.sound_words == word][0] for word in np.unique(own.sound_words)}
    np.testing.assert_array_equal(sounds[:, 0], [by_word[word] for word in heard])
    counts = np.bincount(heard, minlength=len(WORDS))[sorted(by_word)]
    assert len(by_word) > 3 and counts.min() > 0.8 * counts.mean()  # however rare a word is
    again = own.draw(np.random.default_rng(0), 64, 4000)
    jax.tree.map(np.testing.assert_array_equal, again, (pictures, words, sounds, heard))


def test_aligned_projectors_find_the_words() -> None:
    own = examples()
    graph, _ = abstract_params(lambda: MediaEmbedder(MODEL, rngs=nnx.Rngs(0)))
    media = initial_media(MODEL, 0, SyntheticPictures().vectors[:, 0], own.sounds.astype(np.float32))
    before = projector_accuracy((graph, media), TABLE, own)
    aligned = align((graph, media), TABLE, own, steps=40, rate=3e-2, seed=0, log=lambda *_: None)
    after = projector_accuracy((graph, aligned), TABLE, own)
    assert max(before.values()) < 0.7 and after == dict.fromkeys(before, 1.0)
    for name in ("video", "audio"):
        for fixed in ("mean", "std"):
            np.testing.assert_array_equal(aligned[name][fixed], media[name][fixed])
    silent = np.flatnonzero(own.sound_words == len(WORDS) - 1)
    deaf = Examples(own.pictures, own.shown, own.picture_words, own.sounds, own.sound_words.copy())
    deaf.sound_words[silent] = 0  # which it now says of no silence
    found = projector_accuracy((graph, aligned), TABLE, deaf)
    assert found["sounds"] == pytest.approx(1 - len(silent) / len(own.sound_words))
    assert found["sounds without silence"] == pytest.approx(found["sounds"])
