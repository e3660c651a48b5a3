"""Prompts of Qwen2.5-Omni: text and media laid out as tokens, with their rotary positions.

Each part of a prompt is laid out by itself, counting from 0, and `join` moves it to where the part before ends. So a
prompt can be cut anywhere between its parts, and read piece by piece.

    prompt = expand([before, VideoItem((5, 8, 6), 1.0, AudioItem(500)), question], config)
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from acckv_jax import Modality
from models.errors import UserError
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.positions import audio_tokens, chunk_numbers, grid_positions, grid_times, line_positions

_ARRAYS = ("ids", "modality", "positions")


@dataclasses.dataclass(frozen=True)
class AudioItem:
    """A sound.

    Attributes:
        mel_frames: frames of its log-mel spectrogram, 100 a second.
    """

    mel_frames: int


@dataclasses.dataclass(frozen=True)
class ImageItem:
    """A picture.

    Attributes:
        grid: (1, height, width) in patches.
    """

    grid: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class VideoItem:
    """A video, alone or interleaved with its sound.

    Attributes:
        grid: (t, height, width) in patches; each of the t grids holds `temporal_patch_size` frames.
        seconds_per_grid: temporal_patch_size / fps.
        audio: its sound, to be interleaved chunk by chunk; None for a video alone.
    """

    grid: tuple[int, int, int]
    seconds_per_grid: float
    audio: AudioItem | None = None


Part = Sequence[int] | AudioItem | ImageItem | VideoItem
"""Token ids of text, or one item."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A prompt, or a piece of one that starts at position 0.

    Attributes:
        ids: token ids, with the configuration's placeholder where a media token stands.
        modality: id of each token's `Modality`; pictures are video, and the marks around media are text.
        positions: rotary positions: time, height, width.
        next: position of the first token of text that follows. Where a video is longer than its sound it may lie below
            earlier positions.
    """

    ids: Int[np.ndarray, " T"]
    modality: Int[np.ndarray, " T"]
    positions: Int[np.ndarray, "3 T"]
    next: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def delta(self) -> int:
        """Position of the first generated token minus its index: generation goes on above the highest position."""
        return int(self.positions.max(initial=-1)) + 1 - len(self)

    @property
    def row(self) -> Int[np.ndarray, " T"]:
        """For each media token its row in the vision or audio features, as `feature_rows` counts them; else 0."""
        return feature_rows(self.modality)


def expand(parts: Sequence[Part], config: ThinkerConfig) -> Tokens:
    """Lays out text and media.

    Args:
        parts: of the prompt, in order.
        config: ids of the special tokens, rates, size of the merged patches.

    Raises:
        UserError: on a grid or a sound that makes no token, a grid that cannot be merged, an impossible frame rate.
    """
    return join([_expand_part(part, config) for part in parts])


def join(pieces: Sequence[Tokens]) -> Tokens:
    """Pieces one after the other."""
    ends = np.cumsum([0, *(piece.next for piece in pieces)], dtype=np.int32)
    none = np.zeros(0, np.int32)
    return Tokens(
        np.concatenate([none, *(piece.ids for piece in pieces)]),
        np.concatenate([none, *(piece.modality for piece in pieces)]),
        np.concatenate([line_positions(0), *(p.positions + end for p, end in zip(pieces, ends, strict=False))], axis=1),
        int(ends[-1]),
    )


def feature_rows(modality: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Which row of the features each media token takes, in order: pictures and videos share the vision features."""
    row = np.zeros(modality.shape, np.int32)
    for kind in (Modality.VIDEO, Modality.AUDIO):
        here = modality == kind
        row[here] = np.arange(here.sum())
    return row


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts of several lengths, padded on the right with zeros.

    Attributes:
        ids, modality, positions, delta: as in `Tokens`.
        row: as in `Tokens`, counted through all prompts: their features are concatenated.
        length: tokens of each prompt.
    """

    ids: Int[np.ndarray, "B T"]
    modality: Int[np.ndarray, "B T"]
    row: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "3 B T"]
    length: Int[np.ndarray, " B"]
    delta: Int[np.ndarray, " B"]


def stack(prompts: Sequence[Tokens], length: int) -> Batch:
    """A batch of prompts, padded to `length` tokens.

    Raises:
        UserError: if a prompt is longer than that.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if lengths.max() > length:
        raise UserError(f"A prompt has {lengths.max()} tokens, more than the {length} it is to be padded to.")

    def padded(arrays: list[np.ndarray]) -> np.ndarray:
        spare = [((0, 0),) * (x.ndim - 1) + ((0, length - x.shape[-1]),) for x in arrays]
        return np.stack([np.pad(x, pad) for x, pad in zip(arrays, spare, strict=True)], axis=-2)

    ids, modality, positions = (padded([getattr(p, name) for p in prompts]) for name in _ARRAYS)
    delta = np.array([prompt.delta for prompt in prompts], np.int32)
    return Batch(ids, modality, feature_rows(modality), positions, lengths, delta)


def check_features(tokens: Tokens | Batch, vision: int, audio: int) -> None:
    """Checks that the encoders made as many features as the prompt has places for.

    Raises:
        UserError: if not.
    """
    for kind, found in ((Modality.VIDEO, vision), (Modality.AUDIO, audio)):
        places = int((tokens.modality == kind).sum())
        if found != places:
            raise UserError(
                f"The prompt has {places} {kind.name.lower()} tokens but there are {found} features for them; lay the "
                "prompt out with the same media that were encoded."
            )


def _expand_part(part: Part, config: ThinkerConfig) -> Tokens:
    sound = config.audio_start_token_id, config.audio_end_token_id
    vision = config.vision_start_token_id, config.vision_end_token_id
    if isinstance(part, AudioItem):
        return _between(sound[:1], _sound(part, config), sound[1:])
    if isinstance(part, ImageItem):
        if part.grid[0] != 1:
            raise UserError(f"A picture's grid {part.grid} has {part.grid[0]} time steps; give a VideoItem instead.")
        return _between(vision[:1], _grid(part.grid, 0.0, config.image_token_index, config), vision[1:])
    if isinstance(part, VideoItem):
        video = _grid(part.grid, part.seconds_per_grid, config.video_token_index, config)
        if part.audio is None:
            return _between(vision[:1], video, vision[1:])
        body = _interleave(video, _sound(part.audio, config), part, config)
        return _between((vision[0], sound[0]), body, (sound[1], vision[1]))
    return _piece(np.asarray(part, np.int32).reshape(-1), Modality.TEXT, line_positions(len(part)))


def _piece(ids: Int[np.ndarray, " T"], modality: Modality, positions: Int[np.ndarray, "3 T"]) -> Tokens:
    """Tokens of one modality."""
    return Tokens(ids, np.full(len(ids), modality, np.int32), positions, int(positions.max(initial=-1)) + 1)


def _between(start: tuple[int, ...], body: Tokens, end: tuple[int, ...]) -> Tokens:
    """An item between its marks; where there are two marks they share one position."""
    marks = [_piece(np.array(ids, np.int32), Modality.TEXT, np.zeros((3, len(ids)), np.int32)) for ids in (start, end)]
    return join([marks[0], body, marks[1]])


def _sound(item: AudioItem, config: ThinkerConfig) -> Tokens:
    count = audio_tokens(item.mel_frames)
    if count < 1:
        raise UserError(f"A sound of {item.mel_frames} mel frames makes no token; it needs at least 3 (30 ms).")
    return _piece(np.full(count, config.audio_token_index, np.int32), Modality.AUDIO, line_positions(count))


def _grid(grid: tuple[int, int, int], seconds_per_grid: float, token: int, config: ThinkerConfig) -> Tokens:
    merge = config.vision.spatial_merge_size
    if min(grid) < 1:
        raise UserError(f"A grid of {grid} (time, height, width) patches makes no token; give at least one of each.")
    if grid[1] % merge or grid[2] % merge:
        raise UserError(
            f"A grid of {grid} (time, height, width) patches cannot be merged {merge} x {merge}; resize the frames so "
            f"that height and width are multiples of {merge * config.vision.patch_size} pixels."
        )
    if not 0 <= seconds_per_grid < math.inf:
        raise UserError(f"A time step of {seconds_per_grid} seconds is impossible; give temporal_patch_size / fps.")
    times = grid_times(grid[0], seconds_per_grid, config.position_id_per_seconds)
    positions = grid_positions(times, grid[1] // merge, grid[2] // merge)
    return _piece(np.full(positions.shape[1], token, np.int32), Modality.VIDEO, positions)


def _interleave(video: Tokens, sound: Tokens, item: VideoItem, config: ThinkerConfig) -> Tokens:
    """Chunk by chunk, first the video's tokens and then the sound's; both start at position 0.

    The processor of the checkpoints orders the tokens by times in double precision, their model orders the positions
    by times rounded down in single precision. A video whose grids fall just beside the end of a chunk therefore gets
    some positions that were meant for the neighbouring chunk; this is what the checkpoints see, so it is kept.
    """
    per_chunk = config.position_id_per_seconds * config.seconds_per_chunk
    heard = 2 * chunk_numbers(sound.positions[0], per_chunk) + 1
    exact = np.arange(item.grid[0]) * item.seconds_per_grid * config.position_id_per_seconds
    exact = np.repeat(exact, len(video) // item.grid[0])
    keys = [np.concatenate([2 * chunk_numbers(times, per_chunk), heard]) for times in (exact, video.positions[0])]
    of_tokens, of_positions = (np.argsort(key, kind="stable") for key in keys)
    ids, modality, positions = (
        np.concatenate([getattr(video, name), getattr(sound, name)], axis=-1) for name in _ARRAYS
    )
    last = positions[:, keys[1] == keys[1].max()]  # text goes on after the last chunk, not after the highest position
    return Tokens(ids[of_tokens], modality[of_tokens], positions[:, of_positions], int(last.max()) + 1)
