"""Packs the Free Spoken Digit Dataset into the one FLAC file that the repository carries.

Run once, as `python -m train.data.sources.pack_digits recordings.zip`, on the zip of a checkout of Jakobovski's
free-spoken-digit-dataset (3,000 WAV files named `{digit}_{speaker}_{take}.wav`, 8 kHz, 16 bits, CC-BY-SA 4.0).
"""

import argparse
import csv
import io
import wave
import zipfile
from pathlib import Path

import av
import numpy as np

from train.data.sources.digits import FOLDER, RATE

# Louder recordings are scaled to this peak, near that of the two quietest speakers: it saves 2 MB, and 12 bits
# are below the rooms' noise.
PEAK = 2048


def read_zip(path: Path) -> list[tuple[int, str, int, np.ndarray]]:
    """Returns (digit, speaker, take, int16 [samples]) of every recording, sorted."""
    rows = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith(".wav"):
                continue
            digit, speaker, take = Path(name).stem.split("_")
            with wave.open(io.BytesIO(archive.read(name))) as file:
                if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                    raise ValueError(f"{name} is not 16-bit mono at {RATE} Hz.")
                samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            rows.append((int(digit), speaker, int(take), samples))
    return sorted(rows, key=lambda row: row[:3])


def quieten(samples: np.ndarray) -> np.ndarray:
    """Scales int16 samples down to PEAK; quieter recordings stay as they are."""
    peak = int(np.abs(samples.astype(np.int32)).max())
    return samples if peak <= PEAK else np.round(samples * (PEAK / peak)).astype(np.int16)


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Writes int16 mono samples as FLAC, without loss."""
    with av.open(str(path), "w") as container:
        options = {"compression_level": "12", "lpc_passes": "4"}
        stream = container.add_stream("flac", rate=RATE, layout="mono", format="s16", options=options)
        for start in range(0, len(samples), 1 << 16):
            block = np.ascontiguousarray(samples[None, start : start + (1 << 16)])
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate = RATE
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    """Writes recordings.flac and recordings.csv into the data folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("zip", type=Path)
    rows = read_zip(parser.parse_args().zip)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_flac(FOLDER / "recordings.flac", np.concatenate([quieten(row[3]) for row in rows]))
    with (FOLDER / "recordings.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["digit", "speaker", "take", "samples"])
        writer.writerows([digit, speaker, take, len(samples)] for digit, speaker, take, samples in rows)


if __name__ == "__main__":
    main()
