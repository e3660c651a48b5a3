"""Clips that people have, each with what is right by ffprobe and ffmpeg 5.1, Pillow, or qwen-omni-utils 0.0.9."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from models.errors import UserError
from models.media.clip import Media
from tests.models.media.numbered import numbers_of
from tests.models.media.readers import READERS, qwen, smolav, videollama2

CLIPS = Path(__file__).parent / "clips"


def spread(first: int, total: int, number: int) -> list[int]:
    """Frames that qwen-omni-utils takes (`torch.linspace(...).round()`) of `total` visible ones from `first` on."""
    return (first + np.rint(np.linspace(0, total - 1, number))).astype(int).tolist()


def middles(first: int, total: int, number: int = 16) -> list[int]:
    """Frames in the middle of equal parts, as VideoLLaMA2's `frame_sample` takes them."""
    part = (total - 1) / number
    return (first + np.round(part * (np.arange(number) + 0.5) + 1e-6)).astype(int).tolist()


@dataclass(frozen=True)
class Video:
    """A file of numbered frames.

    `total` visible ones (`ffprobe -count_frames`), the first of which is number `first`; of these Qwen takes `qwen`,
    and they start at `times` (ffprobe's `best_effort_timestamp_time`, less the clip's first).
    """

    name: str
    total: int
    qwen: int
    times: tuple[float, ...] | None = None
    first: int = 0
    rate: float | None = None
    sound: float | None = None
    notes: int = 0


VIDEOS = (
    Video("vfr_30fps_then_1fps.mkv", 205, 118, (*np.arange(150) / 30, *np.arange(5, 60.0))),
    Video("vfr_2fps_then_30fps.mkv", 170, 28, (*np.arange(20) / 2, *(10 + np.arange(150) / 30))),
    Video("vfr_ogv_no_rate.ogv", 205, 116),
    Video("browser_recorder_jitter.webm", 120, 8, sound=4.0),
    Video("browser_screen_share.webm", 72, 72, (*np.arange(60) / 30, *(2 + 5 * np.arange(1, 13.0)))),
    Video("browser_one_frame.webm", 1, 1, (0.0,)),
    Video("stream_copied_cut_edit_list.mp4", 122, 8, np.arange(122) / 30, first=90, sound=4.0),
    Video("segment_muxer_second.mkv", 150, 10, first=150, sound=5.0),
    Video("slideshow_0_2fps.mkv", 6, 6, 5 * np.arange(6.0)),
    Video("one_picture_and_sound.mkv", 1, 1, sound=3.0),
    Video("cut_after_sound_ended.mp4", 90, 6, np.arange(90) / 30, first=90, notes=1),
    Video("two_audio_default_second.mkv", 120, 8, sound=4.0, notes=1),
)


def about(seconds: float) -> object:
    """As many samples at 16 kHz, but for what codecs put before and after."""
    return pytest.approx(seconds * 16_000, abs=1_600)


@pytest.mark.parametrize("video", VIDEOS, ids=lambda video: video.name)
def test_frames_are_chosen_from_all_that_are_visible(video):
    seen = qwen(CLIPS / video.name)
    assert numbers_of(seen.frames) == spread(video.first, video.total, video.qwen)
    assert len(seen.notes) == video.notes
    if video.sound is None:
        assert seen.audio is None
    else:
        assert seen.audio is not None and len(seen.audio) == about(video.sound)
    shown = videollama2(CLIPS / video.name)
    assert numbers_of(shown.frames) == middles(video.first, video.total)


@pytest.mark.parametrize("video", [v for v in VIDEOS if v.times is not None], ids=lambda video: video.name)
def test_a_frame_a_second_is_the_one_on_screen(video):
    shown = numbers_of(smolav(CLIPS / video.name).frames)
    times = np.array(video.times)
    seconds = np.arange(int(times[-1]) + 1)
    expected = np.searchsorted(times, seconds + 0.005, side="right") - 1 + video.first
    assert shown[: len(expected)] == expected.tolist()


def test_transport_streams_that_were_joined():
    """Frames 0 to 29 twice, with a clock that starts anew, and sound of both."""
    media = videollama2(CLIPS / "two_ts_concatenated.ts")
    both = [*range(30), *range(30)]
    assert numbers_of(media.frames) == [both[number] for number in middles(0, 60)]
    assert media.audio is not None and len(media.audio) == about(2.1)
    assert [note for note in media.notes if "2 parts" in note] == list(media.notes)


SOUNDS = {
    "espeak_stdout.wav": 23_082 / 22_050,
    "riff_2000000036_tts.wav": 4_000 / 8_000,
    "riff_size_counts_whole_file.wav": 4_000 / 8_000,
    "9_channels.wav": 800 / 8_000,
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_is_read_to_its_end(name):
    for read in READERS.values():
        media = read(CLIPS / name)
        assert media.frames is None and media.notes == ()
        assert media.audio is not None and len(media.audio) == pytest.approx(SOUNDS[name] * 16_000, abs=2)
        assert np.abs(media.audio).max() > 1e-3 or name == "9_channels.wav"


def test_five_minutes_of_aac_are_as_long_as_qwen_hears():
    media = qwen(CLIPS / "exactly_five_minutes.m4a")
    assert media.audio is not None and len(media.audio) == 300 * 16_000


def test_the_track_marked_as_default_is_heard():
    """The first one is silent."""
    media = smolav(CLIPS / "two_audio_default_second.mkv")
    assert media.audio is not None and np.abs(media.audio).max() > 0.1
    assert "2 sound tracks; number 2, which is marked as the default, was read" in media.notes[0]


def frame_of(media: Media) -> np.ndarray:
    assert media.frames is not None and len(media.frames) == 1
    return media.frames[0]


@pytest.mark.parametrize("name", ["exif_orientation_2.jpg", "exif_orientation_5.jpg"])
def test_pictures_are_turned_as_pillow_turns_them(name):
    with Image.open(CLIPS / name) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB").resize((384, 384), Image.Resampling.BICUBIC)
    ours = frame_of(videollama2(CLIPS / name))
    np.testing.assert_allclose(ours.astype(int), np.asarray(expected).astype(int), atol=2)
    height, width = frame_of(qwen(CLIPS / name)).shape[:2]
    assert (height > width) == name.endswith("5.jpg")


def test_a_mirrored_video_is_mirrored():
    """`ffmpeg -i mirrored_matrix.mp4 -frames:v 1` shows the squares of number 816."""
    assert set(numbers_of(smolav(CLIPS / "mirrored_matrix.mp4").frames)) == {816}


TILES = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def test_all_tiles_of_a_phones_picture():
    picture = frame_of(smolav(CLIPS / "iphone_like_tile_grid.heic"))
    corners = [picture[y, x].astype(int) for y in (56, 168) for x in (56, 168)]
    for found, expected in zip(corners, TILES, strict=True):
        np.testing.assert_allclose(found, expected, atol=12)


def test_black_text_on_nothing_is_on_white_for_qwen():
    picture = frame_of(qwen(CLIPS / "black_text_on_transparent.png"))
    assert (picture > 250).mean() > 0.5 and (picture < 60).any()
    assert frame_of(videollama2(CLIPS / "black_text_on_transparent.png")).max() == 0  # `convert("RGB")`, as upstream


def test_an_odd_number_of_pictures():
    seen = qwen(CLIPS / "folder_fold3")
    assert numbers_of(seen.frames) == [1, 2, 3, 3]
    assert numbers_of(smolav(CLIPS / "folder_fold3").frames) == [1, 2, 3]


def test_hidden_files_of_a_folder_are_left_out():
    for read in (qwen, smolav):
        media = read(CLIPS / "folder_foldapple")
        assert numbers_of(media.frames)[:3] == [1, 2, 3] and media.notes == ()


def test_an_animated_webp_is_a_clip():
    with Image.open(CLIPS / "animated.webp") as image:
        count = getattr(image, "n_frames", 1)
    assert numbers_of(videollama2(CLIPS / "animated.webp").frames) == middles(0, count)


REFUSED = {
    "truncated_half.jpg": "damaged or cut short",
    "encrypted.mp4": "video track of .* is encrypted; save a copy without protection",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named(name):
    for read in READERS.values():
        with pytest.raises(UserError, match=REFUSED[name]):
            read(CLIPS / name)
