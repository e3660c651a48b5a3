"""Reads damaged clips as the three models do, each in a process of its own with limits of time and memory.

    python -m tests.fuzz_media --files 1000 --output docs/fuzz_media.md

Whatever is wrong with a file, a user is told in a sentence: no traceback, no hang. What happens inside FFmpeg itself is
listed with the number of the file, which `--only NUMBER --keep FOLDER` writes for a report to its authors.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from models.errors import UserError
from models.media.clip_writer import write_clip
from tests.models.media.numbered import frame
from tests.models.media.readers import READERS

CLIPS = Path(__file__).parent / "models" / "media" / "clips"
KINDS = ("mp4", "mkv", "webm", "ts", "wav", "mp3", "m4a", "gif", "jpg", "heic")
SECONDS, BYTES = 20, 2 << 30
"""Limits for one file, read three times: processor time, and memory."""
PATIENCE = 15  # times SECONDS by the clock, for processes that wait, or a machine that is busy
HEADER = 1024
OUTCOMES = ("read", "refused", "traceback", "hang", "crash")


def flip_bits(data: bytearray, rng: random.Random) -> None:
    """Flips up to 50 bits."""
    for _ in range(rng.randint(1, 50)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    """Leaves the beginning."""
    del data[rng.randrange(1, len(data)) :]


def delete(data: bytearray, rng: random.Random) -> None:
    """Takes out a piece."""
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 1 + len(data) // 8)]


def insert(data: bytearray, rng: random.Random) -> None:
    """Puts in a piece of noise, or one from elsewhere in the file."""
    start, size = rng.randrange(len(data)), rng.randint(1, 2000)
    data[start:start] = rng.randbytes(size) if rng.random() < 0.5 else data[:size]


def damage_header(data: bytearray, rng: random.Random) -> None:
    """Overwrites bytes near the start or the end, where containers keep their tables."""
    size = min(HEADER, len(data))
    start = 0 if rng.random() < 0.7 else len(data) - size
    for _ in range(rng.randint(1, 20)):
        data[start + rng.randrange(size)] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (flip_bits, cut, delete, insert, damage_header)


@dataclass(frozen=True)
class Result:
    """What became of one file: one of OUTCOMES, and a sentence about it."""

    number: int
    kind: str
    damage: str
    outcome: str
    text: str = ""


def whole_files(folder: Path) -> dict[str, bytes]:
    """A whole file of each kind."""
    frames = np.stack([frame(number) for number in range(24)])
    times = np.arange(2 * 16_000) / 16_000
    sound = np.where(times % 1 < 0.1, 0.5 * np.sin(2 * np.pi * 1000 * times), 0).astype(np.float32)
    write_clip(folder / "a.mp4", frames, 12, sound)
    write_clip(folder / "a.mkv", frames, 12, sound)
    write_clip(folder / "a.m4a.mp4", None, 12, sound)
    (folder / "a.m4a.mp4").rename(folder / "a.m4a")
    _convert(folder / "a.mp4", folder / "a.ts")
    for name in ("wav", "mp3"):
        _write_sound(folder / f"a.{name}", sound)
    images = [Image.fromarray(picture) for picture in frames]
    images[0].save(folder / "a.gif", save_all=True, append_images=images[1:], duration=80)
    images[9].resize((320, 240)).save(folder / "a.jpg")
    files = {kind: (folder / f"a.{kind}").read_bytes() for kind in KINDS if (folder / f"a.{kind}").exists()}
    files["webm"] = (CLIPS / "browser_recorder_jitter.webm").read_bytes()
    files["heic"] = (CLIPS / "iphone_like_tile_grid.heic").read_bytes()
    return files


def _convert(source: Path, target: Path) -> None:
    """Copies the packets of a file into another container."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


def _write_sound(path: Path, sound: np.ndarray) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le" if path.suffix == ".wav" else "libmp3lame", rate=16_000, layout="mono")
        block = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format="s16", layout="mono")
        block.sample_rate = 16_000
        resampler = av.AudioResampler(stream.format.name, "mono", 16_000, frame_size=576)
        for converted in [*resampler.resample(block), *resampler.resample(None)]:
            out.mux(stream.encode(converted))
        out.mux(stream.encode(None))


def damaged(number: int, seed: int, files: dict[str, bytes]) -> tuple[str, str, bytes]:
    """Kind, damage and bytes of a file; the same for the same numbers."""
    rng = random.Random(f"{seed}/{number}")
    kind = KINDS[number % len(KINDS)]
    damage = DAMAGES[number // len(KINDS) % len(DAMAGES)]
    data = bytearray(files[kind])
    damage(data, rng)
    return kind, damage.__name__, bytes(data)


def read_in_child(path: Path) -> tuple[str, str]:
    """Reads a file in a process of its own; returns one of OUTCOMES, and what was said."""
    said = path.with_suffix(".said")
    child = os.fork()
    if not child:
        _read_and_exit(path, said)
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE * SECONDS:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.005)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hang", f"not ready after {PATIENCE * SECONDS} s by the clock"
    lines = said.read_text(errors="replace").strip().splitlines()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return "hang", f"not ready after {SECONDS} s"
    if os.WIFSIGNALED(status):
        return "crash", signal.Signals(os.WTERMSIG(status)).name
    if os.WEXITSTATUS(status):
        return "traceback", lines[-1] if lines else ""
    return ("refused", lines[-1]) if lines else ("read", "")


def _read_and_exit(path: Path, said: Path) -> None:
    """In the child: writes to `said` what users would read."""
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    av.logging.set_level(None)
    warnings.simplefilter("error")
    status = 1
    try:
        for read in READERS.values():
            try:
                read(path)
            except UserError as error:
                print(error, flush=True)
        status = 0
    except BaseException:  # whatever it is, users would see its traceback
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def report(results: list[Result], seed: int) -> str:
    """The results as Markdown."""
    counts = Counter((result.kind, result.outcome) for result in results)
    versions = f"PyAV {av.__version__} with FFmpeg {av.ffmpeg_version_info}, Pillow {Image.__version__}"
    lines = [
        "# Damaged clips",
        "",
        f"`python -m tests.fuzz_media --files {len(results)} --seed {seed}`, with {versions}. Each file is read as the",
        f"three models read it, in a process of its own, within {SECONDS} s of processor time and {BYTES >> 30} GiB.",
        "",
        "| kind | " + " | ".join(OUTCOMES) + " |",
        "|---" * (1 + len(OUTCOMES)) + "|",
    ]
    for kind in KINDS:
        lines.append(f"| {kind} | " + " | ".join(str(counts[kind, outcome]) for outcome in OUTCOMES) + " |")
    bad = [result for result in results if result.outcome in ("traceback", "hang", "crash")]
    lines += ["", f"{len(bad)} of {len(results)} files ended in a traceback, a hang or a crash."]
    lines += [f"- file {r.number} ({r.kind}, {r.damage}): {r.outcome}, {r.text}" for r in bad]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Reads damaged files; exits with 1 if one ended in anything but a result or a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--only", type=int, help="read this file alone")
    parser.add_argument("--keep", type=Path, help="folder to leave files in that ended badly, or the only one")
    parser.add_argument("--output", type=Path, help="file for the report; by default it is printed")
    options = parser.parse_args()
    numbers = range(options.files) if options.only is None else [options.only]
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = whole_files(folder)
        for number in numbers:
            kind, damage, data = damaged(number, options.seed, files)
            path = folder / f"{number}.{kind}"
            path.write_bytes(data)
            outcome, text = read_in_child(path)
            results.append(Result(number, kind, damage, outcome, text.replace(str(folder), "")))
            bad = outcome not in ("read", "refused")
            if bad or options.only is not None:
                print(results[-1], file=sys.stderr, flush=True)
            if options.keep is not None and (bad or options.only is not None):
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / path.name).write_bytes(data)
            path.unlink()
    text = report(results, options.seed)
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text)
    return int(any(result.outcome not in ("read", "refused") for result in results))


if __name__ == "__main__":
    sys.exit(main())
