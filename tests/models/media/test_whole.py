"""Files that were cut short, and files whose headers only look so."""

import struct

import numpy as np
import pytest
from PIL import Image

from models.errors import UserError
from models.media.clip import read_clip
from tests.models.media.numbered import frame
from tests.models.media.written import beeps, write_sound, write_video

TOLD = "cut short|not a readable|damaged"
CUT = ("mp4", "mov", "mkv", "webm", "flv", "avi", "wmv", "mxf")


@pytest.mark.parametrize("share", [0.35, 0.9])
@pytest.mark.parametrize("suffix", CUT)
def test_videos_that_were_cut_short(suffix, share, tmp_path):
    write_video(tmp_path / f"a.{suffix}", 60, 25, sound=2.4)
    data = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=TOLD):
        read_clip(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.flac", "flac"), ("a.wma", "wmav2"), ("a.aiff", "pcm_s16be"),
     ("a.m4a", "aac"), ("a.w64", "pcm_s16le"), ("a.au", "pcm_s16be"), ("a.caf", "pcm_s16be")],
)  # fmt: skip
def test_sound_that_was_cut_short(name, codec, tmp_path):
    write_sound(tmp_path / name, np.tile(beeps(3, 44_100), (2, 1)), codec, 44_100, "stereo")
    data = (tmp_path / name).read_bytes()
    assert read_clip(tmp_path / name).audio is not None
    (tmp_path / name).write_bytes(data[: int(0.6 * len(data))])
    with pytest.raises(UserError, match=TOLD):
        read_clip(tmp_path / name)


@pytest.mark.parametrize(("name", "codec"), [("a.opus", "libopus"), ("a.ogg", "libopus")])
def test_ogg_without_the_mark_of_its_end_is_read_with_a_note(name, codec, tmp_path):
    write_sound(tmp_path / name, np.tile(beeps(4, 48_000), (2, 1)), codec, 48_000, "stereo")
    assert read_clip(tmp_path / name).notes == ()
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(0.6 * len(data))])
    assert "has no mark of its end: it may be cut short" in "".join(read_clip(tmp_path / name).notes)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.avif", "a.tiff", "animated.png"])
def test_pictures_that_were_cut_short(name, tmp_path):
    images = [Image.fromarray(frame(number, 320, 240)) for number in range(4)]
    more = {"save_all": True, "append_images": images[1:]} if name in ("a.gif", "animated.png") else {}
    images[3].save(tmp_path / name, **more)
    data = (tmp_path / name).read_bytes()
    read_clip(tmp_path / name)
    (tmp_path / name).write_bytes(data[: int(0.6 * len(data))])
    with pytest.raises(UserError, match=TOLD):
        read_clip(tmp_path / name)


def wav(riff: int, data: int, samples: int = 8000, before: bytes = b"", after: bytes = b"") -> bytes:
    """A WAV file whose two sizes are `riff` and `data` more than they should be."""
    body = (np.arange(samples) % 100 * 200).astype("<i2").tobytes()
    chunk = before + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    inner = b"WAVE" + chunk + b"data" + struct.pack("<I", (len(body) + data) % 2**32) + body + after
    return b"RIFF" + struct.pack("<I", (len(inner) + riff) % 2**32) + inner


EVERYTHING = len(wav(0, 0)) - 8
WHOLE = {
    "right": wav(0, 0),
    "size of the whole file": wav(8, 0),
    "one too large": wav(1, 0),
    "sox and espeak into a pipe": wav(0x7FFFF024 - EVERYTHING, 0x7FFFF000 - 16_000),
    "arecord into a pipe": wav(0x80000024 - EVERYTHING, 0x80000000 - 16_000),
    "all ones": wav(0xFFFFFFFF - EVERYTHING, 0xFFFFFFFF - 16_000),
    "all ones and zero": wav(0xFFFFFFFF - EVERYTHING, -16_000),
    "zero": wav(-EVERYTHING, -16_000),
    "two thousand millions": wav(2_000_000_036 - EVERYTHING, 2_000_000_000 - 16_000),
    "written once": wav(36 - EVERYTHING, -16_000),
    "samples too many": wav(0, 100_000),
    "a chunk before": wav(0, 0, before=b"JUNK" + struct.pack("<I", 28) + bytes(28)),
    "a chunk after": wav(0, 0, after=b"LIST" + struct.pack("<I", 4) + b"INFO"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_sizes_that_programs_write_into_pipes(name, tmp_path):
    (tmp_path / "a.wav").write_bytes(WHOLE[name])
    media = read_clip(tmp_path / "a.wav")
    assert media.audio is not None and len(media.audio) == 8000 and media.notes == ()


def test_a_recording_without_sizes_is_whole(tmp_path):
    """A browser's: the segment of Matroska has the size "unknown"."""
    write_video(tmp_path / "a.mkv", 50, 25, container={"live": "1"})
    media = read_clip(tmp_path / "a.mkv")
    assert media.frames is not None and len(media.frames) == 2
