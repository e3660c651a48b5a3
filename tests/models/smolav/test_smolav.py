"""SmolAV's sequence layout, pooling, media embedder and low-rank updates."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from acckv_jax import Modality
from models.decoder import Decoder
from models.layers.init import FastRngs, Params
from models.smolav.config import LAYOUTS, SmolAVConfig
from models.smolav.lora import init_lora, merge_lora
from models.smolav.modeling import MediaEmbedder, SmolAV, time_features
from models.smolav.preprocess import Chat, EncodedMedia, media_rows, media_tokens, pool_audio, pool_grid
from tests.models.parameters import random_params
from tests.prompts import prompt_tokens
from tests.tolerances import FP32

CONFIG = SmolAVConfig.tiny(video_grid=2, audio_rate=3)
TEXT, VIDEO, AUDIO = Modality.TEXT, Modality.VIDEO, Modality.AUDIO
CHAT = Chat(before=(1, 2), after=(3, 4, 5), end=3)


def _media(frames: int, audio: int) -> EncodedMedia:
    rng = np.random.default_rng(0)
    video = rng.normal(size=(frames, CONFIG.frame_tokens, CONFIG.video_width))
    return EncodedMedia(video.astype(np.float32), rng.normal(size=(audio, CONFIG.audio_width)).astype(np.float32))


def test_interleaved_goes_second_by_second() -> None:
    tokens = media_tokens(2, 6, "interleaved", CONFIG)
    second = [VIDEO] * 4 + [AUDIO] * 3
    assert tokens.modality.tolist() == second * 2
    assert tokens.row.tolist() == [0, 1, 2, 3, 0, 1, 2, 4, 5, 6, 7, 3, 4, 5]
    np.testing.assert_allclose(tokens.seconds[:7], [0.5] * 4 + [1 / 6, 0.5, 5 / 6], rtol=1e-6)
    assert np.floor(tokens.seconds).tolist() == [0] * 7 + [1] * 7


def test_blocks_are_all_video_then_all_audio() -> None:
    tokens = media_tokens(2, 6, "blocks", CONFIG)
    assert tokens.modality.tolist() == [VIDEO] * 8 + [AUDIO] * 6
    assert tokens.row.tolist() == [*range(8), *range(6)]


def test_layouts_hold_the_same_tokens() -> None:
    pairs = [
        sorted(zip(t.modality.tolist(), t.row.tolist(), t.seconds.tolist(), strict=True))
        for t in (media_tokens(3, 7, layout, CONFIG) for layout in LAYOUTS)
    ]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("frames", "audio"), [(0, 5), (2, 0), (3, 4), (1, 9)])
def test_prompt_keeps_text_around_whatever_media_there_are(layout: str, frames: int, audio: int) -> None:
    tokens = prompt_tokens(_media(frames, audio), [7, 8], CHAT, layout, CONFIG)
    assert tokens.ids[:2].tolist() == [1, 2]
    assert tokens.ids[-5:].tolist() == [7, 8, 3, 4, 5]
    assert (tokens.modality == TEXT).sum() == 7
    assert (tokens.modality == VIDEO).sum() == frames * CONFIG.frame_tokens
    assert (tokens.modality == AUDIO).sum() == audio
    assert not tokens.ids[tokens.modality != TEXT].any()


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="no layout 'shuffled'"):
        media_tokens(1, 1, "shuffled", CONFIG)


def test_rows_follow_the_sequence() -> None:
    media = _media(2, 6)
    tokens = prompt_tokens(media, [7], CHAT, "interleaved", CONFIG)
    video, audio = media_rows(tokens, media)
    for t in range(len(tokens)):
        flat = media.video.reshape(-1, CONFIG.video_width)
        expected_video = flat[tokens.row[t]] if tokens.modality[t] == VIDEO else 0
        expected_audio = media.audio[tokens.row[t]] if tokens.modality[t] == AUDIO else 0
        np.testing.assert_array_equal(video[t], np.broadcast_to(expected_video, video[t].shape))
        np.testing.assert_array_equal(audio[t], np.broadcast_to(expected_audio, audio[t].shape))


def test_grid_pooling_averages_overlapping_cells() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 7, 7, 3)).astype(np.float32)
    pooled = pool_grid(maps, 4)
    edges = [(0, 2), (1, 4), (3, 6), (5, 7)]  # adaptive pooling of 7 into 4
    for i, (top, bottom) in enumerate(edges):
        for j, (left, right) in enumerate(edges):
            expected = maps[:, top:bottom, left:right].mean(axis=(1, 2))
            np.testing.assert_allclose(pooled[:, 4 * i + j], expected, **FP32)


def test_audio_pooling_averages_the_remainder_alone() -> None:
    features = np.arange(14, dtype=np.float32).reshape(7, 2)
    expected = [features[:5].mean(axis=0), features[5:].mean(axis=0)]
    np.testing.assert_allclose(pool_audio(features, 5, 7), expected, **FP32)
    longer = np.concatenate([features, np.full((4, 2), np.nan, np.float32)])  # what fills the window counts for nothing
    np.testing.assert_allclose(pool_audio(longer, 5, 7)[:2], expected, **FP32)


def test_embedder_replaces_media_and_leaves_text() -> None:
    graph, params = random_params(lambda: MediaEmbedder(CONFIG, rngs=FastRngs(0)))
    media = _media(2, 6)
    tokens = prompt_tokens(media, [7], CHAT, "interleaved", CONFIG)
    video, audio = media_rows(tokens, media)
    text = np.random.default_rng(1).normal(size=(1, len(tokens), 32)).astype(np.float32)

    where = tokens.modality[None], tokens.seconds[None]
    run = jax.jit(lambda video, audio: nnx.merge(graph, params)(text, *where, video, audio))

    def embed(video: np.ndarray, audio: np.ndarray) -> np.ndarray:
        return np.asarray(run(video[None], audio[None]))[0]

    out = embed(video, audio)
    is_text = tokens.modality == TEXT
    np.testing.assert_array_equal(out[is_text], text[0, is_text])
    # Without the time embedding, every media token has the embeddings' root mean square.
    timed = jax.jit(lambda seconds: nnx.merge(graph, params).time(time_features(seconds, CONFIG.time_periods)))
    time = np.asarray(timed(tokens.seconds[None]))[0]
    rms = np.sqrt(np.mean((out - time)[~is_text] ** 2, axis=-1))
    np.testing.assert_allclose(rms, CONFIG.embedding_rms, rtol=1e-3)
    changed = embed(video + 1, audio) != out
    assert changed[tokens.modality == VIDEO].any(axis=1).all()
    assert not changed[tokens.modality != VIDEO].any()


def test_merged_updates_equal_the_sum_of_both_products() -> None:
    graph, params = random_params(lambda: Decoder(CONFIG.decoder, rngs=FastRngs(0)))
    draw = jax.jit(lambda key: init_lora(key, CONFIG.decoder, CONFIG.lora_rank))
    lora = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), draw(jax.random.key(1)))
    merged = jax.device_get(merge_lora(params, lora, scale=0.5))
    x = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    for index in range(CONFIG.decoder.num_hidden_layers):
        for name in ("q", "k", "v", "o"):
            before = np.asarray(params["layers"][name]["kernel"])[index]
            a, b = (np.asarray(lora[name][part][index]) for part in ("a", "b"))
            expected = x @ before + 0.5 * ((x @ a) @ b)
            np.testing.assert_allclose(x @ merged["layers"][name]["kernel"][index], expected, **FP32)
    jax.tree.map(np.testing.assert_array_equal, merged["layers"]["mlp"], params["layers"]["mlp"])
    assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_whole_model_embeds_text_with_the_decoder() -> None:
    graph, params = random_params(lambda: SmolAV(CONFIG, rngs=FastRngs(0)))
    assert set(params) == {"decoder", "media"}
    tokens = np.array([[3, 4]], np.int32)
    zeros = np.zeros((1, 2), np.int32)
    empty = [np.zeros((1, 2, width), np.float32) for width in (CONFIG.video_width, CONFIG.audio_width)]

    @jax.jit
    def both(params: Params) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, params)
        return model.embed(tokens, zeros, zeros.astype(np.float32), *empty), model.decoder.embed(tokens)

    np.testing.assert_array_equal(*both(params))


def test_config_survives_json() -> None:
    assert SmolAVConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(CONFIG)))) == CONFIG
