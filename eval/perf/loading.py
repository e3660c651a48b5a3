"""How much host memory reading a checkpoint onto many devices takes, beyond the parameters themselves.

python -m eval.perf.loading --folder checkpoint --gb 3

Writes a random Qwen2 in bfloat16 into a folder (unless it is there), reads it onto 8 virtual CPU devices, and prints
the peak growth of this process's memory. The devices' own arrays lie in the same memory, so they are taken off.
"""

import dataclasses
import math
import multiprocessing
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from models import command
from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.hf.decoder import decoder_tensors
from models.hf.export import save_params
from models.layers.init import init_params
from models.registry import open_source

MESH = {"fsdp": 2, "tensor": 4}
SHARD_BYTES = 1e9
STATUS = Path("/proc/self/status")
KINDS = {"RssAnon": "memory of its own", "RssFile": "pages of mapped files"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures the host memory that reading a checkpoint takes."""

    folder: Path
    """Where the checkpoint is written; if there is one, it is read."""
    gb: float = 3.0
    """Size of the checkpoint, in 10^9 bytes."""


def qwen2_of(size: float) -> DecoderConfig:
    """A Qwen2 of the proportions of the 7B's layers and vocabulary, of at least `size` bytes in bfloat16."""
    width, vocab, mlp = 1024, 65536, 5376
    layer = width * (2 * width + 2 * 512 + 3 * mlp)
    layers = max(1, round((size / 2 - 2 * vocab * width) / layer))
    return DecoderConfig(vocab, width, layers, 8, 4, 128, mlp, 1e6, 1e-6, 32768, True, False)


def write(folder: Path, size: float) -> None:
    """Writes a random checkpoint of some `size` bytes."""
    config = qwen2_of(size)
    _, params = init_params(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(jnp.bfloat16)))
    values = dataclasses.asdict(config) | {"model_type": "qwen2", "hidden_act": "silu"}
    save_params(folder, params, decoder_tensors(config), values, max_shard_bytes=SHARD_BYTES)


class Peak:
    """The largest resident memory of this process within a ``with`` block, by kind, sampled every 5 ms."""

    def __enter__(self) -> "Peak":
        self.start = self.most = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            now = resident()
            self.most = {kind: max(self.most[kind], now[kind]) for kind in KINDS}

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def growth(self, kind: str) -> int:
        """Bytes above the start."""
        return self.most[kind] - self.start[kind]


def resident() -> dict[str, int]:
    """Resident bytes of this process, by kind (Linux)."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return {kind: 1024 * int(lines[kind].split()[0]) for kind in KINDS}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.loading", description=__doc__)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    return command.run(lambda: measure(options))


def measure(options: Options) -> None:
    """Writes, reads and prints."""
    if not 0 < options.gb < math.inf:
        raise UserError(f"--gb must be above 0, not {options.gb}.")
    command.check_output(options.folder if not options.folder.exists() else None)
    if not options.folder.exists():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:  # memory it frees would be reused
            other.submit(write, options.folder, options.gb * 1e9).result()
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), devices=jax.devices("cpu"))
    source = open_source(options.folder)
    began = time.perf_counter()
    with Peak() as peak:
        with jax.set_mesh(mesh):
            _, params = source.load(source.dtype())
        jax.block_until_ready(params)
    seconds = time.perf_counter() - began
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    rows = {
        "parameters": sum(sizes),
        "largest tensor": max(sizes),
        **{f"peak growth, {text}": peak.growth(kind) for kind, text in KINDS.items()},
        "peak growth beyond the parameters": peak.growth("RssAnon") - sum(sizes),
    }
    table = Table("", "MB", title=f"onto {mesh.size} devices in {seconds:.1f} s")
    for text, size in rows.items():
        table.add_row(text, f"{size / 1e6:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
