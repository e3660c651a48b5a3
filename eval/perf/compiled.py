"""What a compiler says of a program: memory per device, work, and what moves between devices."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SHAPE = re.compile(r"([a-z]+)(\d+)?[a-z\d]*\[([\d,]*)\]")
TOO_LARGE = re.compile(r"RESOURCE_EXHAUSTED: Ran out of memory .*?\bhbm\b.*?(\d+(?:\.\d+)?)([KMGTP]?)\b", re.IGNORECASE)
UNITS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T", "P"))}


@dataclasses.dataclass(frozen=True)
class Moved:
    """Collectives of one kind in a program's text; one in a loop stands there once.

    Attributes:
        kind: all-reduce and the like.
        number: how many.
        largest: bytes per device of the largest.
    """

    kind: str
    number: int
    largest: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Compiler estimates of one program, in bytes per device.

    Attributes:
        fits: whether the compiler found room for it.
        needs: arguments and outputs (donated ones once), temporaries and code; what the compiler asked for if it does
            not fit, of which it then says no more.
        arguments: what is handed to it, weights included.
        outputs: what it returns.
        donated: outputs that take the place of arguments.
        temporaries: scratch memory.
        flops: the body of a loop counted once.
        accessed: bytes read and written by operations; counts operands, and loops once.
        moved: its collectives.
        seconds: that compiling took.
    """

    fits: bool
    needs: int
    arguments: int | None = None
    outputs: int | None = None
    donated: int | None = None
    temporaries: int | None = None
    flops: float | None = None
    accessed: float | None = None
    moved: tuple[Moved, ...] = ()
    seconds: float = 0.0


def compiled(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a program and reads what the compiler reports; a program that is too large for the device is an answer.

    Raises:
        jax.errors.JaxRuntimeError: if the compiler fails for another reason.
    """
    start = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needs := too_large(str(error))) is None:
            raise
        return Compiled(False, needs, seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory: Any = program.memory_analysis()
    cost: Any = program.cost_analysis() or {}
    return Compiled(
        fits=True,
        needs=needs_of(memory),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=cost.get("flops"),
        accessed=cost.get("bytes accessed"),
        moved=collectives(program.as_text() or ""),
        seconds=seconds,
    )


def needs_of(memory: Any) -> int:
    """Bytes of arguments and outputs (donated ones once), temporaries and code, from a program's `memory_analysis`."""
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def too_large(message: str) -> int | None:
    """Bytes that a program needs, from the message with which a compiler refuses it; None if it is of another kind."""
    found = TOO_LARGE.search(message)
    return int(float(found[1]) * UNITS[found[2].upper()]) if found else None


def collectives(hlo: str) -> tuple[Moved, ...]:
    """Every kind of collective in a program's text."""
    sizes: dict[str, list[int]] = {}
    for line in hlo.splitlines():
        if found := COLLECTIVE.search(line):
            sizes.setdefault(found[2], []).append(sum(_bytes(*shape) for shape in SHAPE.findall(found[1])))
    return tuple(Moved(kind, len(each), max(each)) for kind, each in sorted(sizes.items()))


def _bytes(kind: str, bits: str, dims: str) -> int:
    """Of an array type such as bf16[8,128] or pred[4]."""
    return math.prod(int(n) for n in dims.split(",") if n) * (1 if kind == "pred" else max(1, int(bits or 0) // 8))
