"""Tasks over av_compose: an example is a clip's file and the conversations about it, whatever model is asked."""

import collections
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import models
from eval.held_back import Padding
from eval.tasks.interface import Example, Question, Task
from models.errors import UserError
from models.interface import AVModel
from models.media.clip import Media
from train.data.av_compose import Records, Set

Muted = Literal["audio", "video"]


@dataclasses.dataclass(frozen=True)
class ComposedTask(Task):
    """A task on one of the sets of av_compose.

    Attributes:
        records: the examples as `train.data.av_compose.record` has them; texts may be bytes.
        set: name of the set.
        mute: what is left out of the clips, as a control: what asks for it must fall to chance.
    """

    model: AVModel
    records: Sequence[Mapping[str, Any]]

    set: ClassVar[Set]
    mute: ClassVar[Muted | None] = None
    padding: ClassVar[Padding] = Padding(prefix=(512, 1024, 2048, 3328), question=32)
    policy_options: ClassVar[dict[str, Any]] = {"window_size": 16, "evict_every": 0}

    @classmethod
    def load(cls, model: str, data: Path | None) -> Self:
        """A model by name or folder, and the test split: composed as it is asked for, or a prepared one in `data`.

        Raises:
            UserError: if the model cannot be loaded, or `data` does not hold the set.
        """
        if data is None:
            return cls(models.load(model), Records(cls.set))
        if not (data / "av_compose" / cls.set).is_dir():
            raise UserError(
                f"{data} has no av_compose/{cls.set}: prepare it (docs/av_compose.md), or leave out --data."
            )
        from train.mergenet.tfds_source import open_tfds  # which takes seconds to import

        return cls(models.load(model), open_tfds(f"av_compose/{cls.set}", "test", data))

    @classmethod
    def without(cls, mute: Muted) -> type[Self]:
        """This task on clips without their sound, or without their pictures."""
        made: Any = type(f"{cls.__name__}Without{mute.title()}", (cls,), {"mute": mute})
        return made

    @property
    def ids(self) -> Sequence[str]:
        """Numbers of examples."""
        return [str(number) for number in range(len(self.records))]

    def example(self, id: str) -> Example:
        """The example of this number; the model's layouts take turns."""
        record = self.records[int(id)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mkv"
            path.write_bytes(record["clip"])
            media = self.model.load_media(path)
        layout = self.model.layouts[int(id) % len(self.model.layouts)]
        conversations = collections.defaultdict(list)
        for asked in _rows(record["questions"]):
            labels = {"layout": layout, "subkind": _text(asked["subkind"]), "depth": round(float(record["depth"]), 2)}
            group = self.group(_text(asked["kind"]), _text(asked["subkind"]), _text(record["group"]))
            question = Question(_text(asked["text"]), (_text(asked["answer"]),), group, labels)
            conversations[int(asked["conversation"])].append(question)
        prefix = self.model.encode_media(muted(media, self.mute), layout)
        return Example(prefix, tuple(tuple(turns) for _, turns in sorted(conversations.items())))

    @classmethod
    def group(cls, kind: str, subkind: str, group: str) -> str:
        """The column of the results that a question counts for: its kind."""
        del subkind, group
        return kind


def muted(media: Media, mute: Muted | None) -> Media:
    """A clip without its sound, or without its pictures."""
    if mute is None:
        return media
    return dataclasses.replace(media, **{"frames" if mute == "video" else "audio": None})


def _rows(table: Any) -> Sequence[Mapping[str, Any]]:
    """Rows of a sequence of features, which tfds gives as columns."""
    if not isinstance(table, Mapping):
        return table
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
