"""From encoder outputs to a token sequence: pooling, the two layouts, the chat around them."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from acckv_jax import Modality
from models.smolav.config import LAYOUTS, Layout, SmolAVConfig


@dataclasses.dataclass(frozen=True)
class Chat:
    """Token ids of the fixed text: kept short, because a pruned cache keeps all text.

    Attributes:
        before: what precedes the media.
        after: what stands between the question and the answer.
        end: the token that ends an answer.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    end: int

    @classmethod
    def smollm2(cls, encode: Callable[[str], Sequence[int]]) -> "Chat":
        """SmolLM2-Instruct's turns, without a system turn.

        Args:
            encode: text to token ids; must read `<|im_start|>` and `<|im_end|>` as special tokens.
        """
        after = tuple(encode("<|im_end|>\n<|im_start|>assistant\n"))
        return cls(tuple(encode("<|im_start|>user\n")), after, after[0])


@dataclasses.dataclass(frozen=True)
class EncodedMedia:
    """What the encoders make of one clip.

    Attributes:
        video: one row of tokens per second, [seconds, frame_tokens, video_width]; no rows without pictures.
        audio: audio tokens, [n, audio_width]; none without sound.
    """

    video: Float[np.ndarray, "F P W"]
    audio: Float[np.ndarray, "A W"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A token sequence; every array has T entries.

    Attributes:
        ids: token ids, 0 where a media token stands.
        modality: id of each token's `Modality`: text, video or audio.
        row: for a media token its row in the clip's video or audio tokens, else 0.
        seconds: time of a media token in the clip, else 0.
    """

    ids: Int[np.ndarray, " T"]
    modality: Int[np.ndarray, " T"]
    row: Int[np.ndarray, " T"]
    seconds: Float[np.ndarray, " T"]

    def __len__(self) -> int:
        return len(self.ids)


def text_tokens(ids: Sequence[int]) -> Tokens:
    """Tokens of plain text."""
    zeros = np.zeros(len(ids), np.int32)
    return Tokens(np.asarray(ids, np.int32).reshape(-1), zeros, zeros, zeros.astype(np.float32))


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """Joins token sequences."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def media_tokens(frames: int, audio: int, layout: Layout, config: SmolAVConfig) -> Tokens:
    """Orders the media tokens of a clip.

    "interleaved": second by second, the frame's tokens and then that second's audio tokens (as Qwen2.5-Omni does in
    chunks). "blocks": all video, then all audio (as VideoLLaMA2 does). Time is in the embeddings, so no text tokens
    are spent on separators.

    Args:
        frames: number of frames, one per second.
        audio: number of audio tokens.
        layout: "interleaved" or "blocks".
        config: sizes.

    Raises:
        ValueError: the layout is unknown.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}; use one of {', '.join(LAYOUTS)}.")
    video_row, audio_row = np.arange(frames * config.frame_tokens), np.arange(audio)
    modality = np.repeat([Modality.VIDEO, Modality.AUDIO], [len(video_row), audio]).astype(np.int32)
    row = np.concatenate([video_row, audio_row]).astype(np.int32)
    seconds = np.concatenate([video_row // config.frame_tokens + 0.5, (audio_row + 0.5) / config.audio_rate])
    if layout == "interleaved":
        order = np.argsort(np.floor(seconds), kind="stable")
        modality, row, seconds = modality[order], row[order], seconds[order]
    return Tokens(np.zeros(len(row), np.int32), modality, row, seconds.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class ClipRows:
    """The encoded tokens of one of several clips, among those of all.

    Attributes:
        frames: number of frames.
        audio: number of audio tokens.
        first_video: row of its first video token.
        first_audio: row of its first audio token.
    """

    frames: int
    audio: int
    first_video: int = 0
    first_audio: int = 0


def sequence_tokens(clips: Sequence[ClipRows], layout: Layout, config: SmolAVConfig) -> Tokens:
    """Orders the media tokens of clips that are shown one after the other: as one clip, of whole seconds each.

    Raises:
        ValueError: the layout is unknown.
    """
    parts, start = [], 0
    for clip in clips:
        tokens = media_tokens(clip.frames, clip.audio, layout, config)
        first = np.where(tokens.modality == Modality.VIDEO, clip.first_video, clip.first_audio)
        seconds = tokens.seconds + np.float32(start)
        parts.append(dataclasses.replace(tokens, row=(tokens.row + first).astype(np.int32), seconds=seconds))
        start += max(clip.frames, round(clip.audio / config.audio_rate))
    whole = concatenate(parts)
    if layout == "interleaved":
        return whole
    order = np.argsort(whole.modality, kind="stable")
    return jax.tree.map(lambda x: x[order], whole)


def media_rows(tokens: Tokens, media: EncodedMedia) -> tuple[Float[np.ndarray, "T W"], Float[np.ndarray, "T A"]]:
    """Encoder outputs laid along the sequence: [T, video_width] and [T, audio_width], zero where none stands."""
    rows = []
    video = media.video.reshape(-1, media.video.shape[-1])
    for modality, source in ((Modality.VIDEO, video), (Modality.AUDIO, media.audio)):
        here = tokens.modality == modality
        out = np.zeros((len(tokens), source.shape[-1]), np.float32)
        out[here] = source[tokens.row[here]]
        rows.append(out)
    return rows[0], rows[1]


def pool_grid(maps: Float[Array, "F Y X W"], size: int) -> Float[Array, "F P W"]:
    """Adaptive average pooling of [F, Y, X, W] maps to size x size cells, in reading order.

    Cell i of n averages rows floor(i Y / n) to ceil((i + 1) Y / n), so neighbouring cells share a row where n does
    not divide Y.
    """

    def weights(length: int) -> np.ndarray:
        matrix = np.zeros((size, length), np.float32)
        for i in range(size):
            low, high = i * length // size, -(-(i + 1) * length // size)
            matrix[i, low:high] = 1 / (high - low)
        return matrix

    rows, columns = weights(maps.shape[1]), weights(maps.shape[2])
    pooled = jnp.einsum("iy,jx,fyxw->fijw", rows, columns, maps, precision=jax.lax.Precision.HIGHEST)
    return pooled.reshape(len(maps), size * size, -1)


def pool_audio(
    features: Float[Array, "N W"], factor: int, count: Int[Array, ""] | int
) -> Float[Array, "ceil(N/factor) W"]:
    """Averages every `factor` of the first `count` vectors; a remainder at the end is averaged by itself.

    Later vectors, and results of which none of the first are part, are meaningless.
    """
    real = (jnp.arange(len(features)) < count)[:, None]
    padded = jnp.pad(jnp.where(real, features, 0), ((0, -len(features) % factor), (0, 0)))
    groups = padded.reshape(-1, factor, features.shape[-1])
    sizes = jnp.clip(count - factor * jnp.arange(len(groups)), 1, factor).astype(features.dtype)
    return groups.sum(axis=1) / sizes[:, None]
