"""config.json of a checkpoint folder, read so that what is missing is an error.

Absent (or null) may only be keys whose absence itself says something in Hugging Face's format: `get`, `only` and
`positive` with a default are for these. Of a decoder they are num_key_value_heads and head_dim, which then follow from
the other sizes, and the options that are off where they are not mentioned: biases, sliding windows, and scaled, partial
or sectioned rotary embeddings. Of SigLIP, whose files hold only what differs from the published tower, they are
hidden_act, vision_use_head, layer_norm_eps and num_channels.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from models.errors import UserError
from models.readers.json_object import read_object

Value = TypeVar("Value")
ROPE_TYPES = ("default", "mrope")
ROPE_KEYS = ("rope_type", "type", "rope_theta", "mrope_section")


class Section:
    """An object of a config.json, which knows where it stands in the file.

    What is missing or of the wrong type is noted and reported by `check`, all at once; until then a stand-in (an
    empty value of the asked type) is returned. `reading` calls `check`.

    Attributes:
        file: path of the file.
        at: keys that lead here, joined by dots; empty for the whole file.
        values: the object itself.
    """

    def __init__(self, file: Path, values: dict[str, Any], at: str = "", problems: list[str] | None = None) -> None:
        self.file = file
        self.at = at
        self.values = values
        self._problems = [] if problems is None else problems

    def has(self, name: str) -> bool:
        """Whether there is such a key and its value is not null."""
        return self.values.get(name) is not None

    def need(self, name: str, kind: type[Value]) -> Value:
        """The value of a key that must be there; an integer serves as a float."""
        if not self.has(name):
            return self.problem(f"{self.path(name)} is missing", kind())
        value = self.values[name]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            return self.problem(f"{self.path(name)} must be of type {kind.__name__}, not {value!r}", kind())
        return value

    def get(self, name: str, kind: type[Value], default: Value) -> Value:
        """As `need`, for keys whose absence means `default` in Hugging Face's format."""
        return self.need(name, kind) if self.has(name) else default

    def positive(self, name: str, default: int | None = None) -> int:
        """As `need` and, where there is a default, as `get`, for integers of at least 1."""
        value = self.need(name, int) if default is None else self.get(name, int, default)
        if value < 1 and type(self.values.get(name)) is int:
            return self.problem(f"{self.path(name)} must be at least 1, not {value}", 0)
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers that must be there."""
        values = self.need(name, list)
        if any(type(value) is not int for value in values):
            return self.problem(f"{self.path(name)} must hold integers only, not {values}", ())
        return tuple(values)

    def section(self, name: str) -> "Section":
        """An object inside this one; it must be there, and its problems are noted with ours.

        Where it is not, that alone is noted, not what would be missing in it.
        """
        values = self.need(name, dict)
        return Section(self.file, values, self.path(name), self._problems if values is self.values.get(name) else [])

    def only(self, name: str, value: object) -> None:
        """Notes a problem where a key is there and asks for anything else than the one value that is supported."""
        if self.has(name) and self.values[name] != value:
            self.problem(f"{self.path(name)} is {self.values[name]!r}, but only {value!r} is supported", None)

    def path(self, name: str) -> str:
        """Dotted path of a key."""
        return f"{self.at}.{name}" if self.at else name

    def problem(self, text: str, stand_in: Value) -> Value:
        """Notes a problem for `check`; returns `stand_in`, so that reading can go on."""
        if text not in self._problems:
            self._problems.append(text)
        return stand_in

    def check(self) -> None:
        """Tells all problems noted so far.

        Raises:
            UserError: if there is any.
        """
        if self._problems:
            raise UserError(f"{self.file} cannot be used: {'; '.join(self._problems)}.")


def read_config(folder: Path) -> Section:
    """The config.json of a checkpoint folder.

    Raises:
        UserError: if there is no such folder or file, or the file is no JSON object.
    """
    file = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give the folder of a Hugging Face checkpoint.")
    if not file.is_file():
        raise UserError(_other_folder(folder))
    content = read_object(file)
    if isinstance(method := content.get("quantization_config"), dict):
        raise UserError(
            f"The weights in {folder} are quantised ({method.get('quant_method', 'no method is named')}), which is not "
            "supported; take the checkpoint in bfloat16 or float32 that they were made from."
        )
    return Section(file, content)


def _other_folder(folder: Path) -> str:
    """What a folder without config.json is instead of a checkpoint, and what to do."""
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} is a LoRA adapter, not a whole model; merge it into its model (peft's merge_and_unload), save "
            "that, and give its folder."
        )
    for pattern in ("snapshots/*/config.json", "models--*/snapshots/*/config.json"):
        if snapshots := sorted(folder.glob(pattern)):
            inside = snapshots[0].parent
            return f"{folder} is a cache of the Hugging Face hub; give the folder of a model in it, such as {inside}."
    return f"{folder} is no checkpoint: it has no config.json; give the folder that save_pretrained wrote."


@contextmanager
def reading(folder: Path) -> Iterator[Section]:
    """`read_config`, for a ``with`` block that reads all it needs of it.

    At the block's end everything missing or of the wrong type is reported in one sentence. Where the block fails on the
    stand-ins for such values, that sentence is raised instead of the failure.

    Raises:
        UserError: as `read_config`; and if anything that was read in the block is missing or of the wrong type.
    """
    section = read_config(folder)
    try:
        yield section
    except (ArithmeticError, LookupError, TypeError, ValueError):
        section.check()
        raise
    section.check()


def model_type(section: Section, supported: Iterable[str]) -> str:
    """The model_type of a config.

    Raises:
        UserError: if it is missing or not among `supported`.
    """
    kind = section.need("model_type", str)
    section.check()
    if kind not in (names := tuple(supported)):
        raise UserError(
            f"{section.file} is of a {section.path('model_type')} {kind!r}, which is not supported; "
            f"supported are {', '.join(names)}."
        )
    return kind


def rope(section: Section) -> tuple[float, tuple[int, ...] | None]:
    """Base of the rotary frequencies, and the sections of M-RoPE, of a text config.

    Both spellings are read: transformers 5 writes ``rope_parameters: {rope_type, rope_theta, mrope_section}``, 4 wrote
    ``rope_theta`` and, where there was more to say, ``rope_scaling: {type or rope_type, mrope_section}``.

    Returns:
        rope_theta; mrope_section, or None where positions have one axis.

    Raises:
        UserError: if the frequencies are scaled (yarn, linear, dynamic, llama3...), or in another way not plain.
    """
    spellings = [section.section(name) for name in ("rope_parameters", "rope_scaling") if section.has(name)]
    for options in spellings:  # where there are both, the one does not hide what the other asks for
        old = options.has("type") and not options.has("rope_type")
        kind = options.need("type" if old else "rope_type", str)
        if kind and kind not in ROPE_TYPES:
            raise UserError(
                f"{section.file} asks for rotary embeddings of type {kind!r} ({options.at}), which are not supported; "
                f"supported are {' and '.join(ROPE_TYPES)}."
            )
        if strange := sorted(name for name in options.values if options.has(name) and name not in ROPE_KEYS):
            raise UserError(
                f"{section.file} has {', '.join(map(options.path, strange))}, which change the rotary embeddings in a "
                f"way that is not supported; only {', '.join(ROPE_KEYS)} are."
            )
        if kind == "mrope" and not options.has("mrope_section"):
            options.integers("mrope_section")
    theta = (spellings[0] if section.has("rope_parameters") else section).need("rope_theta", float)
    sections = {options.integers("mrope_section") for options in spellings if options.has("mrope_section")}
    if len(sections) > 1:
        section.problem("rope_parameters and rope_scaling have different mrope_section", None)
    return theta, next(iter(sections), None)
