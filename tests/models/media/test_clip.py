import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from models.errors import UserError
from models.media.clip import Media, Sampling, read_clip
from models.media.clip_writer import write_clip

RATE = 16_000


def grey_frames(levels: list[int], height: int = 48, width: int = 64) -> np.ndarray:
    """One flat picture per level, with a red left half so that orientation is visible."""
    frames = np.zeros((len(levels), height, width, 3), np.uint8)
    frames[...] = np.asarray(levels, np.uint8)[:, None, None, None]
    frames[:, :, : width // 2, 0] = 255
    return frames


def levels_of(media: Media) -> list[int]:
    assert media.frames is not None
    return [int(round(float(f[:, f.shape[1] * 3 // 4 :].mean()))) for f in media.frames]


def tone(seconds: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def write_frames(path: Path, frames: np.ndarray, times_ms: list[int], codec: str, pix_fmt: str) -> None:
    """Writes frames at any times and of any size."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(frames, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def write_sound(path: Path, codec: str, samples: np.ndarray, hole: int = 0) -> None:
    """Writes stereo sound at 44.1 kHz, with a hole of `hole` samples in its middle."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=44_100, layout="stereo")
        for position in range(0, len(samples), 1152):
            block = np.repeat(samples[position : position + 1152], 2)[None]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="s16", layout="stereo")
            frame.sample_rate = 44_100
            frame.pts = position + (hole if position >= len(samples) // 2 else 0)
            frame.time_base = Fraction(1, 44_100)
            resampler = av.AudioResampler(format=stream.codec_context.format, layout="stereo", rate=44_100)
            for converted in resampler.resample(frame):
                out.mux(stream.encode(converted))
        out.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_pictures_and_sound_come_back(tmp_path, suffix):
    levels = [20, 60, 100, 140, 180, 220]
    path = tmp_path / f"clip.{suffix}"
    write_clip(path, np.repeat(grey_frames(levels), 5, axis=0), 5, tone(6))
    seen: list[tuple[float, float | None]] = []
    media = read_clip(path, progress=lambda done, total: seen.append((done, total)))
    assert media.frames is not None and media.audio is not None
    assert media.frames.shape == (6, 48, 64, 3) and media.frames.dtype == np.uint8
    np.testing.assert_allclose(levels_of(media), levels, atol=4)
    assert media.audio.dtype == np.float32
    assert abs(len(media.audio) - 6 * RATE) < 2000
    spectrum = np.abs(np.fft.rfft(media.audio[:RATE]))
    assert int(spectrum.argmax()) == 440
    assert media.notes == ()
    assert seen[-1][0] == pytest.approx(6, abs=0.15)
    assert [s for s, _ in seen] == sorted(s for s, _ in seen)


def test_webm(tmp_path):
    write_frames(tmp_path / "a.webm", grey_frames([50, 200]), [0, 1000], "libvpx-vp9", "yuv420p")
    np.testing.assert_allclose(levels_of(read_clip(tmp_path / "a.webm"))[:2], [50, 200], atol=4)


def test_sampling_rate(tmp_path):
    write_clip(tmp_path / "a.mp4", grey_frames([int(i) for i in np.linspace(10, 240, 20)]), 10)
    media = read_clip(tmp_path / "a.mp4", Sampling(fps=5))
    np.testing.assert_allclose(levels_of(media), np.linspace(10, 240, 20)[::2], atol=5)
    assert media.audio is None


@pytest.mark.parametrize(("suffix", "sound"), [("mp4", True), ("mp4", False), ("mkv", True)])
def test_frames_by_number(tmp_path, suffix, sound):
    """Frames are chosen knowing how many there are; numbers may repeat, and the last ones are always found."""
    levels = [int(i) for i in np.linspace(10, 240, 24)]
    path = tmp_path / f"a.{suffix}"
    write_clip(path, grey_frames(levels), 12, tone(2.3) if sound else None)
    seen = []

    def choose(total: int, fps: float) -> list[int]:
        seen.append((total, fps))
        return [0, 5, 5, 17, 22, 23, 23]

    media = read_clip(path, Sampling(fps=2, choose=choose, resize=lambda pixels: pixels[::2, ::2]))
    assert seen == [(24, 12.0)]
    assert media.frames is not None and media.frames.shape == (7, 24, 32, 3)
    np.testing.assert_allclose(levels_of(media), [levels[i] for i in (0, 5, 5, 17, 22, 23, 23)], atol=4)
    assert media.fps == pytest.approx(7 / 2)


def test_sound_alone_needs_no_frame_count(tmp_path):
    write_clip(tmp_path / "a.mkv", None, 1, tone(1))
    media = read_clip(tmp_path / "a.mkv", Sampling(choose=lambda total, fps: [0]))
    assert media.frames is None and media.audio is not None


def test_variable_frame_rate_is_sampled_by_what_is_on_screen(tmp_path):
    # 10 is on screen until 2.5 s, 60 for 0.1 s, 110 until 5 s, then 160 and 210 in quick succession.
    write_frames(tmp_path / "a.mkv", grey_frames([10, 60, 110, 160, 210]), [0, 2500, 2600, 5000, 5040], "ffv1", "bgr0")
    assert levels_of(read_clip(tmp_path / "a.mkv"))[:6] == [10, 10, 10, 110, 110, 160]


def test_odd_size(tmp_path):
    write_frames(tmp_path / "a.mkv", grey_frames([30, 90], 33, 47), [0, 1000], "ffv1", "bgr0")
    media = read_clip(tmp_path / "a.mkv")
    assert media.frames is not None and media.frames.shape[1:] == (33, 47, 3)
    assert levels_of(media)[:2] == [30, 90]
    resized = read_clip(tmp_path / "a.mkv", Sampling(size=(64, 48)))
    assert resized.frames is not None and resized.frames.shape[1:] == (64, 48, 3)


def test_a_picture_that_is_a_clip(tmp_path):
    """A GIF of one picture does not tell how many it has a second."""
    with av.open(str(tmp_path / "a.gif"), "w") as out:
        stream = out.add_stream("gif", rate=1)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb8"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(grey_frames([255])[0], format="rgb24")))
        out.mux(stream.encode(None))
    media = read_clip(tmp_path / "a.gif", Sampling(fps=2, choose=lambda total, fps: range(total)))
    assert media.frames is not None and len(media.frames) == 1


def test_one_frame(tmp_path):
    write_clip(tmp_path / "a.mp4", grey_frames([77]), 25)
    media = read_clip(tmp_path / "a.mp4")
    assert media.frames is not None and len(media.frames) == 1
    assert media.audio is None


@pytest.mark.parametrize("size", [None, (48, 64)])
def test_rotation_metadata(tmp_path, size):
    path = tmp_path / "a.mp4"
    write_clip(path, grey_frames([0]), 1)
    data = path.read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    # ISO 14496-12 track matrix for a phone held upright: turn the picture 90 degrees clockwise to show it.
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    track = data.index(b"tkhd")
    place = data.index(upright, track)
    path.write_bytes(data[:place] + clockwise + data[place + 36 :])
    media = read_clip(path, Sampling(size=size))
    assert media.frames is not None
    height, width = media.frames.shape[1:3]
    assert (height, width) == (size or (64, 48))
    # The red left half is the top half after a clockwise turn.
    assert media.frames[0, height // 4, :, 0].min() > 200
    assert media.frames[0, 3 * height // 4, :, 0].max() < 60


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame")])
def test_sound_alone(tmp_path, name, codec):
    samples = (8000 * np.sin(2 * np.pi * 1000 * np.arange(2 * 44_100) / 44_100)).astype(np.int16)
    write_sound(tmp_path / name, codec, samples)
    media = read_clip(tmp_path / name)
    assert media.frames is None and media.audio is not None
    assert len(media.audio) / RATE == pytest.approx(2, abs=0.1)
    assert int(np.abs(np.fft.rfft(media.audio[4000 : 4000 + RATE])).argmax()) == 1000
    assert np.abs(media.audio).max() == pytest.approx(8000 / 32768, abs=0.02)


def test_cover_picture_of_a_sound_file_is_not_a_video(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("libmp3lame", rate=44_100, layout="stereo")
        cover = out.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(grey_frames([9], 16, 16)[0], format="rgb24")))
        out.mux(cover.encode(None))
        resampler = av.AudioResampler(format="s16p", layout="stereo", rate=44_100, frame_size=1152)
        frame = av.AudioFrame.from_ndarray(np.full((1, 88_200), 3000, np.int16), format="s16", layout="stereo")
        frame.sample_rate = 44_100
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(sound.encode(block))
        out.mux(sound.encode(None))
    with av.open(str(path), "r") as container:
        assert len(container.streams.video) == 1
    media = read_clip(path)
    assert media.frames is None and media.audio is not None


def test_hole_in_the_sound_becomes_silence(tmp_path):
    loud = np.full(44_100 * 2, 8000, np.int16)
    write_sound(tmp_path / "a.mkv", "pcm_s16le", loud, hole=44_100)
    media = read_clip(tmp_path / "a.mkv")
    assert media.audio is not None
    assert len(media.audio) == pytest.approx(3 * RATE, abs=400)
    assert np.abs(media.audio[int(1.1 * RATE) : int(1.9 * RATE)]).max() < 1e-3
    assert media.audio[int(2.2 * RATE) : int(2.8 * RATE)].min() > 0.2


@pytest.mark.parametrize("how", ["folder", "pattern"])
def test_picture_sequence_in_the_order_of_numbers(tmp_path, how):
    for number, level in ((1, 10), (2, 100), (10, 200)):
        with av.open(str(tmp_path / f"img{number}.png"), "w", format="image2") as out:
            stream = out.add_stream("png", rate=1)
            stream.height, stream.width, stream.pix_fmt = 31, 21, "rgb24"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey_frames([level], 31, 21)[0], format="rgb24")))
            out.mux(stream.encode(None))
    media = read_clip(tmp_path if how == "folder" else tmp_path / "img*.png", Sampling(fps=2))
    assert levels_of(media) == [10, 100, 200] and media.fps == 2
    some = read_clip(tmp_path, Sampling(fps=2, choose=lambda total, fps: [0, total - 1]))
    assert levels_of(some) == [10, 200]
    single = read_clip(tmp_path / "img2.png", Sampling(size=(8, 8)))
    assert single.frames is not None and single.frames.shape == (1, 8, 8, 3)
    assert single.audio is None


def test_long_clip_keeps_only_sampled_frames(tmp_path):
    path = tmp_path / "long.mkv"
    write_frames(
        path, grey_frames([i % 250 for i in range(1200)], 16, 16), list(range(0, 600_000, 500)), "ffv1", "bgr0"
    )
    media = read_clip(path, Sampling(fps=0.5, size=(8, 8)))
    assert media.frames is not None and media.frames.shape == (300, 8, 8, 3)
    assert levels_of(media)[:5] == [0, 4, 8, 12, 16]


def says(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        read_clip(path)
    message = str(error.value)
    assert str(path) in message and message.endswith(".") and "\n" not in message


def test_missing_file(tmp_path):
    says(tmp_path / "no.mp4", "no file")


def test_empty_file(tmp_path):
    (tmp_path / "a.mp4").touch()
    says(tmp_path / "a.mp4", "empty")


def test_empty_folder(tmp_path):
    says(tmp_path, "no pictures")


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt", "notes.wav", "notes.png"])
def test_text_under_any_name(tmp_path, name):
    (tmp_path / name).write_text("These are my notes.\n" * 50)
    says(tmp_path / name, "not a readable|text file|damaged")


def test_noise_named_mp4(tmp_path):
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    says(tmp_path / "a.mp4", "not a readable")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8])
def test_truncated_file(tmp_path, suffix, share):
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 255, (20, 48, 64, 3)).astype(np.uint8)
    write_clip(tmp_path / f"whole.{suffix}", noisy, 2, tone(10))
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: int(share * len(data))])
    says(cut, "cut short|not a readable")


def test_truncated_wav(tmp_path):
    write_sound(tmp_path / "a.wav", "pcm_s16le", np.ones(44_100 * 4, np.int16))
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[: len(data) // 2])
    says(tmp_path / "a.wav", "cut short")


def test_damaged_in_the_middle(tmp_path):
    path = tmp_path / "a.mp4"
    write_clip(path, None, 1, tone(10))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = np.random.default_rng(0).bytes(len(data) - start)
    path.write_bytes(data)
    says(path, "damaged")


def test_few_damaged_packets_are_skipped_and_told(tmp_path):
    path = tmp_path / "a.mp4"
    write_clip(path, None, 1, tone(10))
    with av.open(str(path), "r") as container:
        packets = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    place, size = packets[len(packets) // 2]
    assert place is not None
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    media = read_clip(path)
    assert len(media.notes) == 1 and media.notes[0].startswith("1 of") and str(path) in media.notes[0]
    assert media.audio is not None and abs(len(media.audio) - 10 * RATE) < 4000


def test_neither_pictures_nor_sound(tmp_path):
    path = tmp_path / "a.srt"
    path.write_text("1\n00:00:00,000 --> 00:00:02,000\nHello.\n")
    says(path, "neither pictures nor sound")


def test_bad_rate(tmp_path):
    with pytest.raises(UserError, match="above 0"):
        read_clip(tmp_path / "a.mp4", Sampling(fps=0))


def test_writer_refuses_what_it_cannot_encode(tmp_path):
    with pytest.raises(ValueError, match="even"):
        write_clip(tmp_path / "a.mp4", np.zeros((1, 3, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="pictures, sound or both"):
        write_clip(tmp_path / "a.mp4", None)
