import csv
import io
import sys
import wave
import zipfile

import av
import numpy as np
import pytest

from models.hub.package_index import cache_root
from models.media.waveform import decode_audio
from train.data.sources import SPLITS, cifar10, digits, instruments, pack_digits
from train.data.sources.items import check_split, join_sounds
from train.data.sources.store import stored


def test_digits_are_the_real_recordings():
    sounds = digits.load("train")
    assert len(sounds.labels) == 2000
    np.testing.assert_array_equal(np.bincount(sounds.labels), [200] * 10)
    seconds = sounds.lengths / 16_000
    assert 0.1 < seconds.min() and seconds.max() < 2.5 and 0.3 < np.median(seconds) < 0.6
    wave = sounds.waveform(17)
    assert wave.dtype == np.float32 and len(wave) == sounds.lengths[17]
    assert np.abs(wave).max() == pytest.approx(1, abs=1e-3)
    for label, key in zip(sounds.labels, sounds.keys, strict=True):
        assert key.startswith(f"{label}_")


def test_packing_digits(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    quiet, loud = rng.integers(-2_000, 2_001, 900).astype(np.int16), rng.integers(-9_000, 9_001, 800).astype(np.int16)
    with zipfile.ZipFile(tmp_path / "recordings.zip", "w") as archive:
        for name, samples in (("a/7_theo_1.wav", loud), ("a/3_jackson_12.wav", quiet)):
            with archive.open(name, "w") as entry, wave.open(entry, "wb") as file:
                file.setparams((1, 2, digits.RATE, len(samples), "NONE", "NONE"))
                file.writeframes(samples.tobytes())
        archive.writestr("a/README.md", "not a recording")
    monkeypatch.setattr(pack_digits, "FOLDER", tmp_path / "packed")
    monkeypatch.setattr(sys, "argv", ["pack_digits", str(tmp_path / "recordings.zip")])
    pack_digits.main()
    rows = csv.DictReader((tmp_path / "packed/recordings.csv").read_text().splitlines())
    assert [tuple(row.values()) for row in rows] == [("3", "jackson", "12", "900"), ("7", "theo", "1", "800")]
    found = decode_audio(tmp_path / "packed/recordings.flac", rate=digits.RATE)
    np.testing.assert_array_equal(found[:900], quiet)
    assert len(found) == 1_700 and np.abs(found[900:].astype(int)).max() == pack_digits.PEAK


def test_digit_splits_share_no_recording():
    splits = {split: digits.load(split) for split in SPLITS}
    keys = [key for sounds in splits.values() for key in sounds.keys]
    assert len(keys) == len(set(keys)) == 2500
    waves = [sounds.waveform(i).tobytes() for sounds in splits.values() for i in range(len(sounds.labels))]
    assert len(set(waves)) == 2500
    for sounds in splits.values():
        assert not any(digits.UNSEEN_SPEAKER in key for key in sounds.keys)
        assert len({key.split("_")[1] for key in sounds.keys}) == 5


def test_notes_of_every_instrument_reach_every_split():
    for count in (8, 10, 11, 85):
        split = [instruments.split_of(i) for i in range(count)]
        assert set(split) == set(SPLITS)
        assert split.count("train") >= count / 2


def test_pitch_of_file_names():
    assert instruments.pitch("package/C4.mp3") == 48
    assert instruments.pitch("package/As3.mp3") == 46
    assert instruments.pitch("package/F2 v2.mp3") is None
    assert instruments.pitch("package/index.js") is None


def test_picture_strips():
    pictures = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="image2pipe") as out:
        stream = out.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 7, 1024, "rgb24"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(pictures.reshape(7, 1024, 3), format="rgb24")))
        out.mux(stream.encode(None))
    np.testing.assert_array_equal(cifar10.read_strip(buffer.getvalue()), pictures)


def test_picture_splits_are_slices_of_the_official_ones():
    train, validation, test = (cifar10.SLICES[s] for s in SPLITS)
    rows = np.arange(50_000)
    assert not set(rows[train[1]]) & set(rows[validation[1]])
    assert len(rows[train[1]]) + len(rows[validation[1]]) == 50_000
    assert (train[0], validation[0], test[0]) == ("train", "train", "test")


def test_stored_arrays_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCKV_CACHE", str(tmp_path))
    made = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(5)}

    for _ in range(2):
        np.testing.assert_array_equal(stored("numbers", make)["a"], np.arange(5))
    assert made == [1]
    assert [p.name for p in (cache_root() / "decoded").iterdir()] == ["numbers.npz"]


def test_picking_recordings():
    sounds = join_sounds([np.arange(3, dtype=np.int16), np.arange(9, dtype=np.int16)], [0, 1], ("a", "b"), ["x", "y"])
    last = sounds.pick([1])
    assert last.keys == ("y",) and last.labels.tolist() == [1] and last.lengths.tolist() == [9]
    assert len(sounds.pick([]).labels) == 0


def test_unknown_split():
    with pytest.raises(ValueError, match="train, validation, test"):
        check_split("dev")
