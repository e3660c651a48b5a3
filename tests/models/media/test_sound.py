"""Sound of any kind, as ffmpeg mixes and resamples it, without the loss of bits or of what is louder than 1."""

import av
import numpy as np
import pytest

from models.errors import UserError
from models.media.clip import Media, read_clip
from models.media.waveform import MonoResampler
from tests.models.media.readers import qwen, smolav
from tests.models.media.written import beeps, write_sound, write_video

RATE = 16_000


def wave(seconds: float = 1.0, rate: int = RATE, hertz: float = 440) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def heard(media: Media) -> np.ndarray:
    assert media.audio is not None and media.audio.dtype == np.float32
    return media.audio


@pytest.mark.parametrize("loudness", [1e-6, 0.3, 4.0])
@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
def test_float_samples_stay_what_they_are(codec, loudness, tmp_path):
    write_sound(tmp_path / "a.wav", loudness * wave(), codec)
    np.testing.assert_array_equal(heard(read_clip(tmp_path / "a.wav")), np.float32(loudness) * wave())


@pytest.mark.parametrize(
    ("codec", "step"), [("pcm_s16le", 2**-15), ("pcm_s24le", 2**-23), ("pcm_s32le", 2**-31), ("pcm_u8", 2**-7)]
)
def test_whole_samples_within_one_step(codec, step, tmp_path):
    write_sound(tmp_path / "a.wav", 0.9 * wave(), codec)
    np.testing.assert_allclose(heard(read_clip(tmp_path / "a.wav")), 0.9 * wave(), atol=max(step, 1e-7), rtol=0)


# How much of each channel ffmpeg 5.1 puts into one (-af aresample=rematrix_maxval=1 -ac 1, a second of ones in it).
MIXES = {
    "mono": (1.0,),
    "stereo": (0.5, 0.5),
    "2.1": (0.5, 0.5, 0.0),
    "4.0": (0.2426, 0.2426, 0.3431, 0.1716),
    "5.1": (0.2071, 0.2071, 0.2929, 0.0, 0.1464, 0.1464),
}


@pytest.mark.parametrize("layout", MIXES)
def test_channels_are_mixed_as_ffmpeg_mixes_them(layout, tmp_path):
    for channel, share in enumerate(MIXES[layout]):
        samples = np.zeros((len(MIXES[layout]), RATE), np.float32)
        samples[channel] = 0.5
        write_sound(tmp_path / "a.wav", samples, "pcm_f32le", layout=layout)
        assert heard(read_clip(tmp_path / "a.wav")).mean() / 0.5 == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("channels", [9, 11, 13])
@pytest.mark.parametrize("sample_format", ["s16", "flt", "s16p", "fltp"])
def test_of_many_channels_the_mean(sample_format, channels):
    """No layout is known for so many. (Planes beyond the eighth are out of PyAV's reach.)"""
    samples = np.tile(np.arange(channels) * 1000, 1600).astype(np.int16)
    packed = av.AudioFrame.from_ndarray(samples[None], format="s16", layout=f"{channels} channels")
    packed.sample_rate = RATE
    frames = av.AudioResampler(sample_format, f"{channels} channels", RATE).resample(packed)
    resampler = MonoResampler()
    mono = [block for frame in frames for block in resampler.blocks(frame)]
    np.testing.assert_allclose(np.concatenate(mono), (channels - 1) / 2 * 1000 / 32768, rtol=1e-5)
    assert sum(map(len, mono)) == 1600


def frames_of(samples: np.ndarray, rate: int, sample_format: str, layout: str) -> list[av.AudioFrame]:
    block = av.AudioFrame.from_ndarray(np.ascontiguousarray(np.atleast_2d(samples)), format="fltp", layout=layout)
    block.sample_rate = rate
    return av.AudioResampler(sample_format, layout, rate).resample(block)


def test_a_stream_that_changes_on_the_way():
    """Channels, rate and samples; also from and to what needs no conversion."""
    kinds = [("flt", "mono", RATE), ("s16", "stereo", 48_000), ("fltp", "5.1", 44_100), ("flt", "mono", RATE)]
    kinds += [("s16", "mono", RATE), ("u8", "stereo", 8_000)]
    resampler, parts = MonoResampler(), []
    for sample_format, layout, rate in kinds:
        channels = av.AudioLayout(layout).nb_channels
        for frame in frames_of(np.tile(0.5 * wave(1, rate), (channels, 1)), rate, sample_format, layout):
            parts += resampler.blocks(frame)
    whole = np.concatenate([*parts, *resampler.blocks(None)])
    assert len(whole) == pytest.approx(len(kinds) * RATE, abs=50)
    for second in range(len(kinds)):
        spectrum = np.abs(np.fft.rfft(whole[second * RATE : (second + 1) * RATE]))
        assert int(spectrum.argmax()) == 440 and spectrum.max() == pytest.approx(0.25 * RATE, rel=0.1)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.aac", "aac"), ("a.ac3", "ac3"), ("a.mp3", "libmp3lame"), ("a.ts", "mp2")]
)
def test_files_in_a_row_of_other_kinds(name, codec, tmp_path):
    write_sound(tmp_path / f"1{name}", wave(2, 48_000)[None].repeat(2, 0) / 2, codec, 48_000, "stereo")
    write_sound(tmp_path / f"2{name}", wave(2, 32_000) / 2, codec, 32_000, "mono")
    (tmp_path / name).write_bytes((tmp_path / f"1{name}").read_bytes() + (tmp_path / f"2{name}").read_bytes())
    media = smolav(tmp_path / name)
    assert len(heard(media)) == pytest.approx(4 * RATE, abs=0.3 * RATE)
    for second in (0, 1, 2, 3):
        piece = heard(media)[int((second + 0.3) * RATE) : int((second + 0.8) * RATE)]
        assert 2 * int(np.abs(np.fft.rfft(piece)).argmax()) == 440


def test_sound_is_found_at_its_place(tmp_path):
    """Beeps at full seconds, beside pictures, in containers that start their clocks differently."""
    for suffix in ("mp4", "mkv", "ts", "webm", "avi"):
        write_video(tmp_path / f"a.{suffix}", 60, 25, sound=2.2)
        loud = np.flatnonzero(np.abs(heard(smolav(tmp_path / f"a.{suffix}"))) > 0.2) / RATE
        for second in (1, 2):
            assert loud[loud > second - 0.5][0] == pytest.approx(second, abs=0.07)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
def test_the_default_track(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("aac", rate=RATE, layout="mono") for _ in range(2)]
        streams[0].disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        for stream, samples in zip(streams, (np.zeros(RATE, np.float32), 0.5 * wave()), strict=True):
            block = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            block.sample_rate = RATE
            for part in av.AudioResampler("fltp", "mono", RATE, frame_size=1024).resample(block):
                out.mux(stream.encode(part))
        for stream in streams:
            out.mux(stream.encode(None))
    media = smolav(path)
    assert np.abs(heard(media)).max() > 0.3
    assert media.notes == (f"{path} has 2 sound tracks; number 2, which is marked as the default, was read.",)


def test_sound_that_is_too_long_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write_sound(tmp_path / "a.wav", beeps(301, 8_000), "pcm_u8", 8_000)
    monkeypatch.setattr("models.media.clip.decode", None)
    with pytest.raises(UserError, match=r"lasts 301\.0 s, and Qwen2\.5-Omni hears 300 s at most"):
        qwen(tmp_path / "a.wav")


def test_clips_of_too_many_tokens_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    write_sound(tmp_path / "a.wav", beeps(900, 8_000), "pcm_u8", 8_000)
    monkeypatch.setattr("models.media.clip.decode", None)
    with pytest.raises(
        UserError, match="The clip makes 9000 tokens, but SmolAV reads at most 8192: cut it to less than 91 %"
    ):
        smolav(tmp_path / "a.wav")
