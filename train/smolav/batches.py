"""Packed batches: a clip, then several questions that see the clip and themselves but not each other."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from models.smolav.config import LAYOUTS, Layout, SmolAVConfig
from models.smolav.preprocess import Chat, EncodedMedia, Tokens, concatenate, media_rows, media_tokens, text_tokens
from train.data.clips import Clip, PictureSpan
from train.data.features import ClipPool, PictureFeatures
from train.data.questions import Question, draw_questions, questions
from train.data.sources import Sources
from train.smolav.config import Bucket, TrainConfig

Batch = dict[str, Any]  # of NumPy arrays outside jit, of JAX arrays inside
ANSWER_TOKENS = 5  # longest answer with its end; every question has so many targets


@dataclasses.dataclass(frozen=True)
class Packed:
    """One row before padding.

    Attributes:
        tokens: clip and questions.
        segment: 0 for the turn's start and the media, 1, 2... for the questions.
        positions: rotary positions; every question starts where the media end.
        targets: (index, token) pairs per question: hidden state `index` must predict `token`.
        questions: those that fitted.
    """

    tokens: Tokens
    segment: np.ndarray
    positions: np.ndarray
    targets: tuple[tuple[tuple[int, int], ...], ...]
    questions: tuple[Question, ...]


def pack(
    media: EncodedMedia,
    asked: Sequence[Question],
    encode: Callable[[str], list[int]],
    chat: Chat,
    layout: Layout,
    config: SmolAVConfig,
    length: int,
) -> Packed:
    """Packs a clip and as many of the questions as fit into `length` tokens.

    Raises:
        ValueError: not even one question fits.
    """
    start = concatenate([text_tokens(chat.before), media_tokens(len(media.video), len(media.audio), layout, config)])
    parts, segment, positions = [start], [np.zeros(len(start), np.int32)], [np.arange(len(start), dtype=np.int32)]
    targets, kept, used = [], [], len(start)
    for question in asked:
        prompt = [*encode(question.text), *chat.after]
        answer = [*encode(question.answer), chat.end]
        # The end token itself is predicted, never read.
        ids = [*prompt, *answer[:-1]]
        if used + len(ids) > length:
            break
        first = used + len(prompt) - 1
        targets.append(tuple((first + i, token) for i, token in enumerate(answer)))
        kept.append(question)
        parts.append(text_tokens(ids))
        segment.append(np.full(len(ids), len(kept), np.int32))
        positions.append(np.arange(len(start), len(start) + len(ids), dtype=np.int32))
        used += len(ids)
    if not kept:
        raise ValueError(f"A clip of {len(start)} tokens and a question do not fit into {length}; use a longer bucket.")
    return Packed(concatenate(parts), np.concatenate(segment), np.concatenate(positions), tuple(targets), tuple(kept))


def collate(rows: Sequence[tuple[Packed, EncodedMedia]], bucket_length: int, slots: int) -> Batch:
    """Pads packed rows to one shape; padding has segment -1.

    Args:
        rows: packed rows with their media.
        bucket_length: tokens per row, T.
        slots: questions per row; each has ANSWER_TOKENS targets.

    Returns:
        Arrays: tokens, modality, positions, segment [B, T]; seconds [B, T]; video [B, T, W]; audio [B, T, A];
        target_index, target [B, slots, ANSWER_TOKENS], with target -1 where there is none.
    """
    shape = (len(rows), bucket_length)
    _, sample = rows[0]
    batch: Batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "modality", "positions")}
    batch["segment"] = np.full(shape, -1, np.int32)
    batch["seconds"] = np.zeros(shape, np.float32)
    batch["video"] = np.zeros((*shape, sample.video.shape[-1]), np.float32)
    batch["audio"] = np.zeros((*shape, sample.audio.shape[-1]), np.float32)
    batch["target_index"] = np.zeros((len(rows), slots, ANSWER_TOKENS), np.int32)
    batch["target"] = np.full((len(rows), slots, ANSWER_TOKENS), -1, np.int32)
    for b, (row, media) in enumerate(rows):
        n = len(row.tokens)
        batch["tokens"][b, :n] = row.tokens.ids
        batch["modality"][b, :n] = row.tokens.modality
        batch["seconds"][b, :n] = row.tokens.seconds
        batch["positions"][b, :n] = row.positions
        batch["segment"][b, :n] = row.segment
        batch["video"][b, :n], batch["audio"][b, :n] = media_rows(row.tokens, media)
        for s, pairs in enumerate(row.targets[:slots]):
            for i, (index, token) in enumerate(pairs):
                batch["target_index"][b, s, i], batch["target"][b, s, i] = index, token
    return batch


def redraw_pictures(rng: np.random.Generator, clip: Clip, sources: Sources) -> Clip:
    """The clip with other pictures at the same times: one encoded soundtrack serves many clips."""
    labels = rng.permutation(len(sources.picture_names))[: len(clip.pictures)]
    pictures = tuple(
        PictureSpan(
            int(rng.choice(np.flatnonzero(sources.picture_labels == label))),
            sources.picture_names[label],
            span.start,
            span.end,
        )
        for label, span in zip(labels, clip.pictures, strict=True)
    )
    return dataclasses.replace(clip, pictures=pictures)


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of any step from (seed, step) alone, so that a resumed run sees what it would have seen."""

    config: TrainConfig
    pools: dict[str, ClipPool]
    pictures: PictureFeatures
    encode: Callable[[str], list[int]]
    chat: Chat

    def training(self, step: int) -> Batch:
        """The training batch of a step."""
        rng = np.random.default_rng([self.config.seed, step])
        names, weights = zip(*self.config.stage_at(step).mix, strict=True)
        name = names[int(rng.choice(len(names), p=np.asarray(weights) / sum(weights)))]
        bucket = self.config.buckets[name]
        rows = [self._draw(rng, bucket, self.pools[name]) for _ in range(bucket.batch)]
        return collate(rows, bucket.length, bucket.questions)

    def _draw(self, rng: np.random.Generator, bucket: Bucket, pool: ClipPool) -> tuple[Packed, EncodedMedia]:
        index = int(rng.integers(bucket.pool.count))
        clip, audio = redraw_pictures(rng, pool.clip(index), pool.sources), pool.audio(index)
        fate = rng.random()
        if fate < self.config.drop:
            clip, audio = dataclasses.replace(clip, sounds=()), audio[:0]
        elif fate < 2 * self.config.drop and clip.sounds:
            clip = dataclasses.replace(clip, pictures=())
        media = EncodedMedia(self.pictures.take(clip.picture_ids), audio)
        asked = draw_questions(rng, clip, bucket.questions)
        layout = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
        return pack(media, asked, self.encode, self.chat, layout, self.config.model, bucket.length), media

    def stream(self, start: int) -> grain.IterDataset:
        """All batches from step `start` on, prepared ahead by a thread."""
        steps = grain.MapDataset.range(start, self.config.steps)
        return steps.map(self.training).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))


def question_rows(
    clip: Clip,
    media: EncodedMedia,
    encode: Callable[[str], list[int]],
    chat: Chat,
    layout: Layout,
    config: SmolAVConfig,
    length: int,
) -> list[Packed]:
    """Every question of a clip in its canonical phrasing, packed into as few rows as they need."""
    left, rows = questions(clip), []
    while left:
        row = pack(media, left, encode, chat, layout, config, length)
        rows.append(row)
        left = left[len(row.questions) :]
    return rows
