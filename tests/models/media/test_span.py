"""A part of a clip is read as if it were the whole clip."""

import numpy as np
import pytest
from PIL import Image

from models.errors import UserError
from models.media.clip import Sampling, read_clip
from models.media.waveform import SAMPLE_RATE
from models.qwen2_5_omni.config import VisionConfig
from models.qwen2_5_omni.frames import ClipFrames
from tests.models.media.numbered import numbers_of
from tests.models.media.written import beeps, write_video

RATE, SECONDS = 10, 8


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """80 numbered frames, and a beep at every full second."""
    path = tmp_path_factory.mktemp("span") / "clip.mp4"
    write_video(path, RATE * SECONDS, RATE, sound=SECONDS)
    return path


def test_frames_and_sound_of_a_part(clip):
    media = read_clip(clip, Sampling(fps=2), span=(2.5, 5.5))
    assert numbers_of(media.frames) == [25, 30, 35, 40, 45, 50] and media.fps == 2
    assert media.audio is not None and len(media.audio) == 3 * SAMPLE_RATE
    loud = np.abs(media.audio) > 0.2
    wanted = np.abs(beeps(SECONDS, SAMPLE_RATE)[round(2.5 * SAMPLE_RATE) : round(5.5 * SAMPLE_RATE)]) > 0.2
    seconds = [np.flatnonzero(np.convolve(x, np.ones(160), "same")).min() / SAMPLE_RATE for x in (loud, wanted)]
    assert seconds[0] == pytest.approx(seconds[1], abs=0.03)  # the beep of the third second


def test_frames_chosen_by_number_are_of_the_part(clip):
    media = read_clip(clip, Sampling(choose=lambda total, rate: [0, total // 2, total - 1]), span=(2.0, 6.0))
    assert numbers_of(media.frames) == [20, 40, 59]


def test_a_model_chooses_as_in_a_clip_of_that_length(clip):
    part = ClipFrames(VisionConfig.tiny()).load_clip(clip, span=(1.0, 4.0))
    assert part.frames is not None and len(part.frames) == 6 and part.fps == 2.0


def test_the_end_of_the_clip_ends_the_part(clip):
    media = read_clip(clip, Sampling(fps=1), span=(6.0, 99.0))
    assert numbers_of(media.frames) == [60, 70]
    assert media.audio is not None and abs(len(media.audio) - 2 * SAMPLE_RATE) < 2000


def test_all_of_it_is_the_clip(clip):
    part, whole = read_clip(clip, span=(0.0, 99.0)), read_clip(clip)
    np.testing.assert_array_equal(part.frames, whole.frames)
    np.testing.assert_array_equal(part.audio, whole.audio)


def test_sound_alone(tmp_path):
    write_video(tmp_path / "clip.mp4", 10, RATE, sound=4)
    media = read_clip(tmp_path / "clip.mp4", span=(2.0, 3.0))  # the last picture stays on
    assert numbers_of(media.frames) == [9] and media.audio is not None and len(media.audio) == SAMPLE_RATE


def test_what_is_seen_without_sound(tmp_path):
    write_video(tmp_path / "clip.mp4", 40, RATE, sound=1)
    media = read_clip(tmp_path / "clip.mp4", span=(2.0, 3.0))
    assert numbers_of(media.frames) == [20] and media.audio is None


@pytest.mark.parametrize("span", [(8.5, 9.0), (3.0, 3.0), (4.0, 3.0), (-1.0, 2.0)])
def test_no_part(clip, span):
    with pytest.raises(UserError, match=rf"clip.mp4 ends after 8.\d s, and has no part from second {span[0]:g} to"):
        read_clip(clip, span=span)


def test_a_picture_has_no_parts(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for path in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(UserError, match="is no video or sound file, of which alone a part can be read"):
            read_clip(path, span=(0.0, 1.0))
