"""Packed batches: a clip, then conversations about it that see the clip and themselves but not each other."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from models.smolav.config import LAYOUTS, Layout, SmolAVConfig
from models.smolav.preprocess import Chat, EncodedMedia, Tokens, concatenate, media_rows, media_tokens, text_tokens
from train.data.clips import Clip, PictureSpan
from train.data.features import ClipPool, PictureFeatures
from train.data.questions import Question, draw_conversations, questions
from train.data.sources import Sources
from train.smolav.config import Bucket, TrainConfig

Batch = dict[str, Any]  # of NumPy arrays outside jit, of JAX arrays inside


@dataclasses.dataclass(frozen=True)
class Packed:
    """One row before padding.

    Attributes:
        tokens: clip and questions.
        segment: 0 for the turn's start and the media, 1, 2... for the conversations.
        positions: rotary positions; every conversation starts where the media end.
        targets: (index, token) pairs per question: hidden state `index` must predict `token`.
        questions: those that fitted, conversation by conversation.
        turns: for each its place in its conversation, from 1.
    """

    tokens: Tokens
    segment: np.ndarray
    positions: np.ndarray
    targets: tuple[tuple[tuple[int, int], ...], ...]
    questions: tuple[Question, ...]
    turns: tuple[int, ...]


def pack(
    media: EncodedMedia,
    conversations: Sequence[Sequence[Question]],
    encode: Callable[[str], list[int]],
    chat: Chat,
    layout: Layout,
    config: SmolAVConfig,
    length: int,
    most_targets: int,
) -> Packed:
    """Packs a clip and as many of the questions as fit into `length` tokens and `most_targets` answer tokens.

    Further questions of a conversation follow as `SmolAVModel.encode_next_question` has them, after the right answer.

    Raises:
        ValueError: not even one question fits.
    """
    start = concatenate([text_tokens(chat.before), media_tokens(len(media.video), len(media.audio), layout, config)])
    parts, segment, positions = [start], [np.zeros(len(start), np.int32)], [np.arange(len(start), dtype=np.int32)]
    targets, kept, turns, used = [], [], [], len(start)

    def fits(prompt: list[int], answer: list[int]) -> bool:
        answers = sum(map(len, targets)) + len(answer)
        return used + len(prompt) + len(answer) - 1 <= length and answers <= most_targets

    for number, conversation in enumerate(conversations, 1):
        before, begun = list[int](), used
        for turn, question in enumerate(conversation, 1):
            prompt = [*before, *encode(question.text), *chat.after]
            answer = [*encode(question.answer), chat.end]
            if not fits(prompt, answer):
                break
            # The end token is predicted, and read only where another turn follows.
            ids = [*prompt, *answer[:-1]]
            first = used + len(prompt) - 1
            targets.append(tuple((first + i, token) for i, token in enumerate(answer)))
            kept.append(question)
            turns.append(turn)
            parts.append(text_tokens(ids))
            segment.append(np.full(len(ids), number, np.int32))
            positions.append(np.arange(len(ids), dtype=np.int32) + len(start) + used - begun)
            used += len(ids)
            before = [chat.end, *chat.before]
    if not kept:
        raise ValueError(f"A clip of {len(start)} tokens and a question do not fit into {length}; use a longer bucket.")
    whole = concatenate(parts), np.concatenate(segment), np.concatenate(positions)
    return Packed(*whole, tuple(targets), tuple(kept), tuple(turns))


def collate(rows: Sequence[tuple[Packed, EncodedMedia]], length: int, targets: int) -> Batch:
    """Pads packed rows to one shape; padding has segment -1.

    Args:
        rows: packed rows with their media.
        length: tokens per row, T.
        targets: answer tokens per row, P.

    Returns:
        Arrays: tokens, modality, positions, segment [B, T]; seconds [B, T]; video [B, T, W]; audio [B, T, A];
        and for the targets question, turn, index, target [B, P]: number of the question in the row, its turn (0 for a
        transcript's), the position that predicts, and the token, -1 where there is none.
    """
    shape = (len(rows), length)
    _, sample = rows[0]
    batch: Batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "modality", "positions")}
    batch["segment"] = np.full(shape, -1, np.int32)
    batch["seconds"] = np.zeros(shape, np.float32)
    batch["video"] = np.zeros((*shape, sample.video.shape[-1]), np.float32)
    batch["audio"] = np.zeros((*shape, sample.audio.shape[-1]), np.float32)
    batch |= {name: np.zeros((len(rows), targets), np.int32) for name in ("question", "turn", "index")}
    batch["target"] = np.full((len(rows), targets), -1, np.int32)
    for b, (row, media) in enumerate(rows):
        n = len(row.tokens)
        batch["tokens"][b, :n] = row.tokens.ids
        batch["modality"][b, :n] = row.tokens.modality
        batch["seconds"][b, :n] = row.tokens.seconds
        batch["positions"][b, :n] = row.positions
        batch["segment"][b, :n] = row.segment
        batch["video"][b, :n], batch["audio"][b, :n] = media_rows(row.tokens, media)
        found = [
            (number, 0 if question.kind == "transcript" else turn, index, token)
            for number, (question, turn, pairs) in enumerate(zip(row.questions, row.turns, row.targets, strict=True))
            for index, token in pairs
        ]
        for name, values in zip(("question", "turn", "index", "target"), zip(*found, strict=True), strict=True):
            batch[name][b, : len(found)] = values
    return batch


def redraw_pictures(rng: np.random.Generator, clip: Clip, sources: Sources) -> Clip:
    """The clip with other pictures at the same times: one encoded soundtrack serves many clips.

    Classes are exchanged for others throughout the clip, so classes that differed still do.
    """
    labels = dict(zip(sources.picture_names, rng.permutation(len(sources.picture_names)), strict=True))

    def redrawn(span: PictureSpan) -> PictureSpan:
        label = labels[span.name]
        picture = int(rng.choice(np.flatnonzero(sources.picture_labels == label)))
        return PictureSpan(picture, sources.picture_names[label], span.start, span.end)

    return dataclasses.replace(clip, pictures=tuple(map(redrawn, clip.pictures)))


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
        return collate(rows, bucket.length, bucket.targets)

    def _draw(self, rng: np.random.Generator, bucket: Bucket, pool: ClipPool) -> tuple[Packed, EncodedMedia]:
        index = int(rng.integers(bucket.pool.count))
        clip, audio = redraw_pictures(rng, pool.clip(index), pool.sources), pool.audio(index)
        fate = rng.random()
        if fate < self.config.drop:
            clip, audio = dataclasses.replace(clip, sounds=()), audio[:0]
        elif fate < 2 * self.config.drop and clip.sounds:
            clip = dataclasses.replace(clip, pictures=())
        media = EncodedMedia(self.pictures.take(clip.picture_ids), audio)
        layout = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
        return self.packed(rng, clip, media, bucket, layout), media

    def packed(
        self,
        rng: np.random.Generator,
        clip: Clip,
        media: EncodedMedia,
        bucket: Bucket,
        layout: Layout,
        *,
        canonical: bool = False,
    ) -> Packed:
        """A row of a bucket: the clip and drawn conversations about it."""
        asked = draw_conversations(rng, clip, bucket.questions, bucket.kinds, bucket.turns, canonical=canonical)
        size = (bucket.length, bucket.targets)
        return pack(media, asked, self.encode, self.chat, layout, self.config.model, *size)

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
    targets: int,
) -> list[Packed]:
    """Every question of a clip in its canonical phrasing, packed into as few rows as they need."""
    left, rows = questions(clip), []
    while left:
        row = pack(media, [(question,) for question in left], encode, chat, layout, config, length, targets)
        rows.append(row)
        left = [question for question in left if question not in row.questions]
    return rows
