"""Which tracks of a clip are read, and what is said about the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from models.media.packets import Track

NAMES = {"video": "video", "audio": "sound"}
REPAIRS = {
    "is encrypted": "save a copy without protection",
    "has a codec that is not known": "convert it with another program, for instance to mp4",
    "is empty": "record it again, or remove the track",
    "cannot be decoded": "copy it again, or convert it with another program",
}


@dataclass(frozen=True)
class Choice:
    """The tracks that are read.

    Attributes:
        tracks: the video that is read and the sound that is read; there may be only one of them.
        notes: sentences about tracks that are not read.
    """

    tracks: tuple[Track, ...]
    notes: tuple[str, ...]


def choose_tracks(path: Path, tracks: Sequence[Track], undecodable: frozenset[int] = frozenset()) -> Choice:
    """Of the tracks of each kind that can be read, the one that the file marks as default, else the first.

    Args:
        path: the file, for messages.
        tracks: all of it.
        undecodable: streams of which not one packet could be decoded.

    Raises:
        UserError: there is none.
    """
    if not tracks:
        raise UserError(f"{path} holds neither pictures nor sound; choose another file.")
    chosen, notes, faults = [], [], []
    for kind in ("video", "audio"):
        all_of_kind = [track for track in tracks if track.kind == kind]
        found = [(number, track, fault(track, undecodable)) for number, track in enumerate(all_of_kind, start=1)]
        good = [(number, track) for number, track, why in found if why is None]
        number, read = next(((n, t) for n, t in good if t.default), good[0] if good else (0, None))
        which = f", and number {number} was read" if read is not None else " and was left out"
        for other, _, why in found:
            if why is not None:
                name = f"{NAMES[kind]} track {other}" if len(found) > 1 else f"{NAMES[kind]} track"
                faults.append(f"The {name} of {path} {why}; {REPAIRS[why]}.")
                notes.append(f"The {name} of {path} {why}{which}.")
        if read is not None:
            chosen.append(read)
            if len(good) > 1:
                marked = ", which is marked as the default," if read.default else ""
                notes.append(f"{path} has {len(found)} {NAMES[kind]} tracks; number {number}{marked} was read.")
    if not chosen:
        raise UserError(faults[0])
    return Choice(tuple(chosen), tuple(notes))


def fault(track: Track, undecodable: frozenset[int]) -> str | None:
    """What keeps a track from being read: a key of REPAIRS; None if nothing does."""
    if track.encrypted:
        return "is encrypted"
    if track.codec is None:
        return "has a codec that is not known"
    if not track.visible:
        return "is empty"
    return "cannot be decoded" if track.stream in undecodable else None
