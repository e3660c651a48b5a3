"""Token layout and positions of prompts, against transformers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from acckv_jax import Modality
from models.errors import UserError
from models.interface import EmbeddedPrompt
from models.qwen2_5_omni.config import ThinkerConfig, VisionConfig
from models.qwen2_5_omni.encoders import Features, place_features
from models.qwen2_5_omni.prompt import (
    AudioItem,
    ImageItem,
    Part,
    Tokens,
    VideoItem,
    check_features,
    expand,
    join,
)
from tests.models.qwen2_5_omni.prompt_oracle import Oracle
from tests.prompts import embeddings

CASES = 1000
BASE = ThinkerConfig.omni_7b()
CONFIGS = (
    BASE,
    dataclasses.replace(BASE, position_id_per_seconds=13, seconds_per_chunk=3),
    dataclasses.replace(BASE, vision=VisionConfig.tiny(spatial_merge_size=3), seconds_per_chunk=1),
)
FPS = (0.1, 0.3, 0.45, 0.5, 0.8, 1, 1.7, 2, 3, 5, 6.1, 7, 12, 23.976, 24, 25, 29.97, 30, 60)
BESIDE = (41, 47, 55, 61)  # rates where single and double precision put a grid on different sides of a chunk's end
FOLLOWING = [1000]  # text after the prompt
TEXT, VIDEO, AUDIO = Modality.TEXT, Modality.VIDEO, Modality.AUDIO


def random_prompt(rng: np.random.Generator, config: ThinkerConfig, *, in_video: bool) -> list[Part]:
    merge = config.vision.spatial_merge_size

    def text() -> list[int]:
        return rng.integers(1000, 2000, rng.integers(0, 7)).tolist()

    def grid(frames: int, largest: int = 5) -> tuple[int, int, int]:
        height, width = rng.integers(1, largest + 1, 2) * merge
        return frames, int(height), int(width)

    def sound(seconds: float) -> AudioItem:
        return AudioItem(max(3, round(100 * seconds)))

    def video() -> VideoItem:
        if rng.random() < 0.1:
            shape, fps = grid(int(rng.integers(50, 80)), 2), rng.choice(BESIDE)
        else:
            fps = rng.choice(FPS) if rng.random() < 0.8 else rng.uniform(0.05, 40)
            shape = grid(int(rng.integers(1, 9)))
        length = min(shape[0] * 2 / fps, 8) * rng.choice([rng.uniform(0, 1), 1, rng.uniform(1, 2)])
        return VideoItem(shape, float(2 / fps), sound(length) if in_video else None)

    def item() -> Part:
        kind = rng.choice(["video", "video", "image", "sound"])
        return video() if kind == "video" else ImageItem(grid(1)) if kind == "image" else sound(rng.uniform(0, 6))

    parts: list[Part] = [text()]
    for _ in range(rng.choice([0, 1, 1, 2, 3, 4])):
        parts += [item(), text()]
    return parts


def test_thousand_random_prompts_equal_transformers() -> None:
    rng = np.random.default_rng(0)
    oracles = [Oracle(config) for config in CONFIGS]
    seen, below = 0, 0
    while seen < CASES:
        oracle = oracles[rng.choice(3, p=[0.7, 0.15, 0.15])]
        in_video = bool(rng.random() < 0.6)
        prompts = [random_prompt(rng, oracle.config, in_video=in_video) for _ in range(rng.integers(1, 5))]
        seen += len(prompts)
        expected = oracle([[*prompt, FOLLOWING] for prompt in prompts], pad_left=bool(rng.random() < 0.5))
        for prompt, wanted in zip(prompts, expected, strict=True):
            tokens = expand(prompt, oracle.config)
            np.testing.assert_array_equal([*tokens.ids, *FOLLOWING], wanted.ids)
            np.testing.assert_array_equal(tokens.positions, wanted.positions[:, :-1])
            assert (wanted.positions[:, -1] == tokens.next).all() and tokens.next == len(tokens) + tokens.delta
            below += tokens.next <= tokens.positions.max(initial=-1)
    assert below >= 10  # text does start below a video in some


@pytest.mark.parametrize("audio", [AudioItem(30), AudioItem(400), AudioItem(1200)])
@pytest.mark.parametrize(("fps", "frames"), [(2, 5), (0.33, 3), (0.1, 3), (3, 9), *((fps, 64) for fps in BESIDE)])
def test_awkward_rates_equal_transformers(fps: float, frames: int, audio: AudioItem) -> None:
    prompt: list[Part] = [[1000], VideoItem((frames, 4, 2), 2 / fps, audio), [1001]]
    (wanted,) = Oracle(BASE)([prompt], pad_left=False)
    found = expand(prompt, BASE)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.positions, wanted.positions)


def runs(tokens: Tokens) -> str:
    """Letters and lengths of stretches of equal tokens."""
    letters = {BASE.video_token_index: "V", BASE.audio_token_index: "A", BASE.image_token_index: "I"}
    marks = {BASE.vision_start_token_id: "<v", BASE.vision_end_token_id: "v>"}
    marks |= {BASE.audio_start_token_id: "<a", BASE.audio_end_token_id: "a>"}
    out: list[tuple[str, int]] = []
    for token in tokens.ids.tolist():
        name = (letters | marks).get(token, "T")
        if out and out[-1][0] == name:
            out[-1] = name, out[-1][1] + 1
        else:
            out.append((name, 1))
    return " ".join(name if name in marks.values() else f"{name}{count}" for name, count in out)


def test_layouts_of_a_clip() -> None:
    audio = AudioItem(600)
    inner = expand([[1, 2], VideoItem((6, 20, 28), 1.0, audio), [3]], BASE)
    assert runs(inner) == "T2 <v <a V280 A50 V280 A50 V280 A50 a> v> T1"
    apart = expand([[1, 2], VideoItem((6, 20, 28), 1.0), audio, [3]], BASE)
    assert runs(apart) == "T2 <v V840 v> <a A150 a> T1"
    assert sorted(inner.ids) == sorted(apart.ids)
    rows = expand([ImageItem((1, 4, 4)), AudioItem(8), VideoItem((1, 2, 4), 1.0)], BASE)
    assert runs(rows) == "<v I4 v> <a A2 a> <v V2 v>"
    assert rows.modality.tolist() == [TEXT] + [VIDEO] * 4 + [TEXT, TEXT] + [AUDIO] * 2 + [
        TEXT,
        TEXT,
        VIDEO,
        VIDEO,
        TEXT,
    ]
    text = EmbeddedPrompt.of(rows.text_ids, np.zeros(6, int))
    pictures = [Features(jnp.arange(100, 108), np.arange(4)), Features(jnp.arange(200, 208), np.array([5, 2]))]
    placed = place_features(text, rows, pictures, [Features(jnp.arange(300, 308), np.arange(2))])
    seen = np.where(rows.modality == TEXT, rows.ids, [0, 100, 101, 102, 103, 0, 0, 300, 301, 0, 0, 205, 202, 0])
    np.testing.assert_array_equal(embeddings(placed), seen)


def test_one_slow_frame_is_split_over_chunks() -> None:
    tokens = expand([VideoItem((3, 4, 4), 6.0, AudioItem(1600))], BASE)
    assert runs(tokens) == "<v <a V4 A50 V1 A50 V1 A50 V2 A50 V1 A50 V1 A50 V2 A100 a> v>"


def test_text_may_start_below_a_long_video() -> None:
    tokens = expand([[1], VideoItem((4, 2, 2), 1.0, AudioItem(220)), [2]], BASE)
    assert runs(tokens) == "T1 <v <a V2 A50 V2 A5 a> v> T1"
    assert tokens.positions[:, -8:].tolist() == [[52, 53, 54, 55, 56, 57, 57, 58]] * 3
    assert tokens.positions.max() == 77 and tokens.next == 59
    assert tokens.delta == 59 - len(tokens)


def test_a_prompt_read_in_pieces_is_the_same_prompt() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        prompt = random_prompt(rng, BASE, in_video=True)
        whole = expand([*prompt, [7, 8, 9], [10, 11]], BASE)
        pieces = join([expand(prompt, BASE), expand([[7, 8]], BASE), expand([[9, 10, 11]], BASE)])
        for name in ("ids", "modality", "positions", "next", "delta"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))


def test_features_must_be_as_many_as_places() -> None:
    prompt = expand([AudioItem(8), ImageItem((1, 2, 2))], BASE)
    check_features(prompt, 1, 2)
    with pytest.raises(UserError, match="1 video tokens but there are 2 features"):
        check_features(prompt, 2, 2)


def test_no_text_and_no_media() -> None:
    nothing = expand([], BASE)
    assert len(nothing) == 0 and nothing.next == 0 and nothing.delta == 0 and nothing.positions.shape == (3, 0)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (AudioItem(2), "2 mel frames makes no token"),
        (VideoItem((2, 4, 4), 1.0, AudioItem(0)), "0 mel frames makes no token"),
        (VideoItem((0, 4, 4), 1.0, AudioItem(100)), r"\(0, 4, 4\).*at least one"),
        (VideoItem((2, 5, 4), 1.0), r"\(2, 5, 4\).*multiples of 28 pixels"),
        (ImageItem((1, 4, 3)), "multiples of 28 pixels"),
        (ImageItem((2, 4, 4)), "2 time steps; give a VideoItem"),
        (VideoItem((2, 4, 4), -1.0), "step of -1.0 seconds is impossible"),
        (VideoItem((2, 4, 4), float("nan")), "step of nan seconds is impossible"),
    ],
)
def test_impossible_media(part: Part, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        expand([part], BASE)


def test_features_and_tokens_that_disagree() -> None:
    tokens = expand([VideoItem((2, 4, 4), 1.0, AudioItem(100))], BASE)
    check_features(tokens, 8, 25)
    with pytest.raises(UserError, match="8 video tokens but there are 9 features"):
        check_features(tokens, 9, 25)
    with pytest.raises(UserError, match="25 audio tokens but there are 0 features"):
        check_features(tokens, 8, 0)
