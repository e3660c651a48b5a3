"""Which frames there are and when they are on, by the packets alone, in all usual containers."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest

from models.media.clip import Sampling, read_clip
from models.media.packets import Track, frame_rate, scan
from models.qwen2_5_omni import images
from tests.models.media.numbered import numbers_of
from tests.models.media.readers import qwen, smolav, videollama2
from tests.models.media.written import write_video
from tests.tiers import quick_first

RATES = [Fraction(rate) for rate in ("10", "12", "15", "20", "24000/1001", "24", "25", "30000/1001", "30", "50")] + [
    Fraction(60_000, 1001),
    Fraction(60),
    Fraction(120),
]
CONTAINERS = ("mp4", "mkv", "ts", "flv", "mov", "webm")


def tracks_of(path) -> list[Track]:
    with av.open(str(path)) as container:
        return scan(container)


def on_screen(path, total: int, rate: Fraction, **options) -> None:
    """Checks the frames that the models get of evenly spaced ones."""
    (track,) = [track for track in tracks_of(path) if track.kind == "video"]
    assert track.frames is not None and track.visible == total and track.parts == 1
    assert track.frames.rate == pytest.approx(float(rate), rel=2e-4)
    chosen: list[tuple[int, float]] = []

    def choose(count: int, fps: float) -> list[int]:
        chosen.append((count, fps))
        return images.spread_frames(count, images.number_of_frames(count, fps)).tolist()

    media = read_clip(path, Sampling(choose=choose, resize=lambda pixels: pixels))
    assert chosen == [(total, pytest.approx(float(rate), rel=2e-4))]
    number = images.number_of_frames(total, float(rate))
    assert numbers_of(media.frames) == np.rint(np.linspace(0, total - 1, number)).astype(int).tolist()
    half_seconds = numbers_of(read_clip(path, Sampling(fps=2, size=(64, 96))).frames)
    for seen, time in zip(half_seconds, itertools.count(0, 0.5), strict=False):
        assert abs(seen - time * rate) <= 1.001  # a frame is on until the next one, and times are rounded


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("rate", quick_first(RATES), ids=str)
def test_constant_rates(rate, suffix, tmp_path):
    write_video(tmp_path / f"a.{suffix}", 40, rate)
    on_screen(tmp_path / f"a.{suffix}", 40, rate)


@pytest.mark.parametrize("suffix", [*CONTAINERS, "avi", "wmv", "mxf", "mpg", "h264", "m2ts"])
def test_all_frames_in_their_order(suffix, tmp_path):
    """Also with frames stored out of order, and where the file holds no times at all."""
    path = tmp_path / f"a.{suffix}"
    sound = None if suffix == "h264" else 2.0
    write_video(path, 50, 25, sound=sound)
    (track,) = [track for track in tracks_of(path) if track.kind == "video"]
    assert track.visible == 50 and track.frames is not None
    media = read_clip(path, Sampling(choose=lambda total, rate: range(total), resize=lambda pixels: pixels))
    assert numbers_of(media.frames) == list(range(50)) and (media.audio is not None) == (sound is not None)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "20"}),  # has frames that are never shown
        ("a.avi", "libx264", {"bf": "3"}),  # AVI tells no times of presentation
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.mkv", "libx264", {"bf": "3"}),
    ],
)
def test_frames_out_of_order(name, codec, options, tmp_path):
    write_video(tmp_path / name, 40, 20, codec=codec, options=options)
    on_screen(tmp_path / name, 40, Fraction(20))


@pytest.mark.parametrize("flags", ["frag_keyframe", "frag_keyframe+empty_moov", "dash+frag_keyframe+global_sidx"])
def test_fragments(flags, tmp_path):
    write_video(tmp_path / "a.mp4", 60, 30, options={"g": "15"}, container={"movflags": flags})
    on_screen(tmp_path / "a.mp4", 60, Fraction(30))


UNEVEN = [*(number / 30 for number in range(30)), *(1 + number for number in range(10))]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_variable_rates(suffix, tmp_path):
    """Thirty frames within a second, then one every second."""
    path = tmp_path / f"a.{suffix}"
    write_video(path, 40, times=UNEVEN, options={"bf": "0"} if suffix != "webm" else None)
    number = images.number_of_frames(40, 40 / 10.5)
    assert numbers_of(qwen(path).frames) == np.rint(np.linspace(0, 39, number)).astype(int).tolist()
    assert numbers_of(videollama2(path).frames)[-1] == 38
    assert numbers_of(smolav(path).frames)[:10] == [0, *range(30, 39)]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_few_frames(suffix, tmp_path):
    """A picture every five seconds, and a single one."""
    write_video(
        tmp_path / f"slides.{suffix}", 4, times=[0, 5, 10, 15], options={"bf": "0"} if suffix != "webm" else None
    )
    assert numbers_of(smolav(tmp_path / f"slides.{suffix}").frames)[:16] == [*[0] * 5, *[1] * 5, *[2] * 5, 3]
    assert numbers_of(qwen(tmp_path / f"slides.{suffix}").frames) == [0, 1, 2, 3]
    write_video(tmp_path / f"one.{suffix}", 1, 25, first=7, sound=2.0)
    media = qwen(tmp_path / f"one.{suffix}")
    assert numbers_of(media.frames) == [7] and media.audio is not None and len(media.audio) > 30_000


@pytest.mark.parametrize("second", ["same clock", "later clock", "other numbers"])
def test_transport_streams_in_a_row(second, tmp_path):
    """The clock starts anew: from the same time, from an hour later, and in tracks of other numbers."""
    write_video(tmp_path / "a.ts", 60, 30, sound=2.0)
    options = {"other numbers": {"mpegts_start_pid": "512"}, "later clock": {"output_ts_offset": "3600"}}
    write_video(tmp_path / "b.ts", 60, 30, first=60, sound=2.0, container=options.get(second))
    (tmp_path / "ab.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    media = videollama2(tmp_path / "ab.ts")
    expected = [round((119 / 16) * (part + 0.5) + 1e-6) for part in range(16)]
    np.testing.assert_allclose(numbers_of(media.frames), expected, atol=second == "other numbers")
    assert media.audio is not None and len(media.audio) == pytest.approx(4.1 * 16_000, abs=2_000)
    beeps = np.flatnonzero(np.abs(media.audio) > 0.2)
    assert beeps[-1] > 3 * 16_000  # those of the second part stand after those of the first
    assert len(media.notes) == 1 and "2 parts" in media.notes[0]
    assert numbers_of(smolav(tmp_path / "ab.ts").frames)[:2] == [0, 30]


def test_packets_that_were_lost_are_told(tmp_path):
    write_video(tmp_path / "a.ts", 60, 30, sound=2.0)
    data = (tmp_path / "a.ts").read_bytes()
    packets = [data[start : start + 188] for start in range(0, len(data), 188)]
    pictures = [number for number, packet in enumerate(packets) if packet[1:3] == b"\x41\x00"]
    (tmp_path / "a.ts").write_bytes(b"".join(p for number, p in enumerate(packets) if number != pictures[30]))
    notes = smolav(tmp_path / "a.ts").notes
    assert any("are incomplete: parts were lost on the way" in note for note in notes)


@pytest.mark.parametrize("jitter", [0, 0.008, 0.012])
def test_the_rate_of_a_clock_with_jitter(jitter):
    noise = np.random.default_rng(0).uniform(-jitter, jitter, 90)
    starts = np.sort(np.round(np.arange(90) / 30 + noise, 3))
    assert frame_rate(starts, Fraction(3), [], 1e-3) == 30
    assert frame_rate(starts * 1.001, Fraction(3003, 1000), [Fraction(30_000, 1001)], 1e-3) == 30_000 / 1001


def test_rates_that_the_header_has_wrong():
    starts = np.arange(50) / 25
    assert frame_rate(starts, Fraction(2), [Fraction(30), Fraction(1000)], 1e-3) == 25
    assert frame_rate(np.array(UNEVEN), Fraction(10), [Fraction(30)], 1e-3) == 4
    assert frame_rate(np.zeros(1), Fraction(0), [Fraction(25)], 1e-3) is None
