"""What attention with column sums costs on TPUs that need not be there: ``python -m eval.perf.column_sums [options]``.

Compiles the attention of one layer's first prefill for one chip: splash attention alone, with the column sums of all
rows and with those of a window, and row blocks in plain XLA. Memory and bytes are the compiler's estimates; of kernels
it knows only what they declare, so the bytes that the kernels' blocks move are modelled beside it, by `block_traffic`.
"""

import dataclasses
import functools
import sys
import time

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import AxisType
from rich.console import Console
from rich.table import Table

from acckv_jax.attention import Implementation, QueryWeights, attend
from acckv_jax.cache import full_layer
from acckv_jax.kernels import splash
from acckv_jax.kernels.column_sums import LANES, cost, largest_block, padded
from eval.perf.compiled import compiled
from eval.perf.topologies import GIB, find_topology
from models import command
from models.errors import UserError

DTYPE = jnp.dtype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Options:
    """Compiles the attention of one layer for one TPU chip, and prints what it needs.

    The default is a chip's share of Qwen2.5-Omni-7B, whose 4 KV heads are divided over 4 chips.
    """

    topologies: tuple[str, ...] = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
    """Kinds of chips, as topologies of which the first chip is compiled for (needs libtpu)."""
    context: int = 20480
    """Prompt tokens."""
    rows: int = 1
    """Prompts."""
    heads: int = 7
    """Query heads."""
    kv_heads: int = 1
    """Key-value heads."""
    size: int = 128
    """Size of a head."""
    window: int = 32
    """Rows of the window."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one chip.

    Attributes:
        program: what it computes.
        seconds: that compiling took.
        temporaries: bytes of scratch memory.
        accessed: bytes that the compiler counts; of splash attention it counts each operand once.
        modelled: bytes that the kernels' blocks move; None for plain XLA.
    """

    program: str
    seconds: float
    temporaries: int
    accessed: float
    modelled: int | None


def block_traffic(options: Options, counted: int | None) -> int:
    """Bytes between HBM and VMEM of splash attention, and of the column sums of `counted` rows if there are any.

    A block is copied whenever another one was there before: queries and outputs once, keys and values for every query
    head and block of rows that sees them; in the column sums, keys once and queries for every block of slots.
    """
    tokens = padded(options.context)
    block, slots = largest_block(tokens, splash.ROWS), largest_block(tokens, splash.SLOTS)
    seen = sum(-(-(i + 1) * block // slots) for i in range(tokens // block))  # pairs of blocks
    row = 2 * options.size * DTYPE.itemsize + (LANES * 4 if counted else 0)  # a query and its output, log-sum-exp
    flash = options.heads * (tokens * row + seen * slots * 2 * options.size * DTYPE.itemsize)
    if not counted:
        return options.rows * flash
    queries = (options.rows, options.kv_heads, options.heads // options.kv_heads, counted, options.size)
    return options.rows * flash + cost(queries, tokens, DTYPE.itemsize, 1).bytes_accessed


def _first_prefill(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    length: jax.Array,
    weights: jax.Array,
    *,
    window: int | None,
    implementation: Implementation,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    index = jnp.zeros_like(length)[:, None] + jnp.arange(q.shape[1], dtype=jnp.int32)[None, :]
    layer = full_layer(k, v, index, index.astype(jnp.int8), index < length[:, None])
    stats = (QueryWeights(weights, window=window),) if window else ()
    return attend(q, layer, index, stats, aligned=True, implementation=implementation)


def measured(options: Options, name: str) -> list[Row]:
    """All programs for one chip.

    Raises:
        UserError: if there is no such topology, or a program does not fit.
    """
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=find_topology(name).devices[:1])
    with jax.set_mesh(mesh):
        place = jax.NamedSharding(mesh, jax.P())

        def array(*shape: int, dtype: jnp.dtype = DTYPE) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        by_token = (options.rows, options.context)
        whole = jnp.dtype(jnp.float32)
        arrays = (
            array(*by_token, options.heads, options.size),
            array(*by_token, options.kv_heads, options.size),
            array(*by_token, options.kv_heads, options.size),
            array(options.rows, dtype=jnp.dtype(jnp.int32)),
            array(*by_token, dtype=whole),
        )
        found = []
        programs: list[tuple[str, Implementation, int | None]] = [
            ("attention alone", "tpu", None),
            ("with sums of all rows", "tpu", options.context),
            (f"with sums of {options.window} rows", "tpu", options.window),
            ("row blocks, sums of all rows", "xla", options.context),
        ]
        for program, implementation, window in programs:
            run = functools.partial(_first_prefill, window=window, implementation=implementation)
            start = time.perf_counter()
            needs = compiled(jax.jit(run).lower(*arrays))
            seconds = time.perf_counter() - start
            if needs.temporaries is None or needs.accessed is None:
                raise UserError(f"{program} needs {needs.needs / GIB:.1f} GiB, which is too much for a chip of {name}.")
            counted = None if window is None else min(padded(window), padded(options.context))
            modelled = block_traffic(options, counted) if implementation == "tpu" else None
            found.append(Row(program, seconds, needs.temporaries, needs.accessed, modelled))
    return found


def run(options: Options) -> None:
    """Compiles and prints.

    Raises:
        UserError: on any mistake in the options, or if a program does not fit.
    """
    sizes = (options.context, options.rows, options.heads, options.kv_heads, options.size, options.window)
    if min(sizes) < 1 or options.heads % options.kv_heads:
        raise UserError("Sizes must be at least 1, and --heads a multiple of --kv-heads.")
    table = Table(title=f"Attention of one layer, {options.rows} x {options.context:,} tokens, bfloat16")
    for column in ("chip", "program", "compiled in s", "temporaries, MiB", "GB by the compiler", "GB by blocks"):
        table.add_column(column, justify="left" if column in ("chip", "program") else "right")
    for name in options.topologies:
        for row in measured(options, name):
            modelled = "" if row.modelled is None else f"{row.modelled / 1e9:.2f}"
            table.add_row(
                name.partition(":")[0],
                row.program,
                f"{row.seconds:.1f}",
                f"{row.temporaries / 2**20:.0f}",
                f"{row.accessed / 1e9:.2f}",
                modelled,
            )
    Console(width=120).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.column_sums", description=__doc__)
    jax.config.update("jax_platforms", "cpu")
    return command.run(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
