"""Tracks that cannot be read: named for what they are, and another one is read where there is one."""

import av
import numpy as np
import pytest

from models.errors import UserError
from models.media.clip import read_clip
from tests.models.media.numbered import numbers_of
from tests.models.media.readers import smolav
from tests.models.media.written import write_video

UNKNOWN = "has a codec that is not known"


def patch(path, *changes: tuple[bytes, bytes]) -> None:
    data = path.read_bytes()
    for old, new in changes:
        assert old in data and len(old) == len(new)
        data = data.replace(old, new)
    path.write_bytes(data)


NO_PICTURES = {"mkv": (b"V_MPEG4/ISO/AVC", b"V_XXXX4/ISO/AVC"), "mp4": (b"avc1", b"xyz1")}


@pytest.mark.parametrize("suffix", NO_PICTURES)
def test_pictures_of_an_unknown_codec(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    write_video(path, 30, 30, sound=1.0)
    patch(path, NO_PICTURES[suffix])
    media = smolav(path)
    assert media.frames is None and media.audio is not None
    assert media.notes == (f"The video track of {path} {UNKNOWN} and was left out.",)
    write_video(path, 30, 30)
    patch(path, NO_PICTURES[suffix])
    with pytest.raises(UserError, match=f"The video track of .* {UNKNOWN}; convert it"):
        smolav(path)


def test_sound_of_an_unknown_codec(tmp_path):
    path = tmp_path / "a.mkv"
    write_video(path, 30, 30, sound=1.0)
    patch(path, (b"A_AAC", b"A_XYZ"))
    media = smolav(path)
    assert numbers_of(media.frames) == [0] and media.audio is None
    assert media.notes == (f"The sound track of {path} {UNKNOWN} and was left out.",)


def write_two_videos(path, damage: bool) -> None:
    """Two tracks, of which the second one is sharp; the packets of the first one may be noise."""
    write_video(path.with_name("one.mkv"), 30, 30, first=100)
    write_video(path.with_name("two.mkv"), 30, 30, first=200)
    with (
        av.open(str(path.with_name("one.mkv"))) as one,
        av.open(str(path.with_name("two.mkv"))) as two,
        av.open(str(path), "w") as out,
    ):
        streams = [out.add_stream_from_template(source.streams.video[0]) for source in (one, two)]
        packets = [[p for p in source.demux(video=0) if p.size] for source in (one, two)]
        for pair in zip(*packets, strict=True):
            for packet, stream in zip(pair, streams, strict=True):
                packet.stream = stream
                out.mux(packet)
    if damage:
        data = bytearray(path.read_bytes())
        with av.open(str(path)) as container:
            places = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
        rng = np.random.default_rng(0)
        for place, size in places:
            assert place is not None
            start = place + 8
            data[start : place + size - 1] = rng.bytes(max(0, place + size - 1 - start))
        path.write_bytes(data)


def test_a_second_track_of_pictures_is_told_and_read_where_the_first_is_damaged(tmp_path):
    write_two_videos(tmp_path / "a.mkv", damage=False)
    media = read_clip(tmp_path / "a.mkv")
    assert numbers_of(media.frames) == [100] and "has 2 video tracks" in media.notes[0]
    write_two_videos(tmp_path / "b.mkv", damage=True)
    media = read_clip(tmp_path / "b.mkv")
    assert numbers_of(media.frames) == [200]
    assert media.notes == (f"The video track 1 of {tmp_path / 'b.mkv'} cannot be decoded, and number 2 was read.",)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mp3", "flac", "wav", "avi"])
def test_titles_in_any_encoding(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    codec = {"mp3": "libmp3lame", "flac": "flac", "wav": "pcm_s16le"}.get(suffix, "aac" if suffix != "avi" else "mp2")
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "XXXXX"
        stream = out.add_stream(codec, rate=44_100, layout="stereo")
        stream.bit_rate = 128_000
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 88_200), np.int16), format="s16", layout="stereo")
        silence.sample_rate = 44_100
        resampler = av.AudioResampler(stream.codec_context.format, "stereo", 44_100, frame_size=1152)
        for block in [*resampler.resample(silence), *resampler.resample(None)]:
            out.mux(stream.encode(block))
        out.mux(stream.encode(None))
    patch(path, (b"XXXXX", b"Stra\xdf"))  # Latin-1
    assert read_clip(path).audio is not None


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\na.ts\n",  # without an end: FFmpeg would wait for more
        "ffconcat version 1.0\nfile a.ts\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    ],
)
def test_lists_of_other_files_are_not_followed(text, tmp_path):
    write_video(tmp_path / "a.ts", 10, 10)
    (tmp_path / "live.mp4").write_text(text)
    with pytest.raises(UserError, match="is a list of other files"):
        read_clip(tmp_path / "live.mp4")
