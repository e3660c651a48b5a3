"""Packing: segments, positions, targets, and what a batch's arrays hold."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from models.smolav.config import LAYOUTS
from models.smolav.preprocess import EncodedMedia
from tests.prompts import prompt_tokens
from tests.train.synthetic import CHAT, CONFIG, MODEL, SOURCES, SyntheticPictures, SyntheticPool, batch_maker, encode
from train.data.questions import questions
from train.smolav.batches import collate, pack, question_rows, redraw_pictures
from train.smolav.losses import exact_answers, packed_mask


def _clip_and_media():
    pool = SyntheticPool()
    clip = pool.clip(0)
    return clip, EncodedMedia(SyntheticPictures().take(clip.picture_ids), pool.audio(0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_packed_question_reads_as_its_own_prompt(layout: str) -> None:
    clip, media = _clip_and_media()
    asked = questions(clip)
    packed = pack(media, asked, encode, CHAT, layout, MODEL, 400)
    assert packed.questions == tuple(asked)
    for number, (question, targets) in enumerate(zip(packed.questions, packed.targets, strict=True), start=1):
        prompt = prompt_tokens(media, encode(question.text), CHAT, layout, MODEL)
        seen = (packed.segment == 0) | (packed.segment == number)
        for name in ("ids", "modality", "row", "seconds"):
            np.testing.assert_array_equal(
                getattr(packed.tokens, name)[seen][: len(prompt)], getattr(prompt, name), err_msg=name
            )
        np.testing.assert_array_equal(packed.positions[seen], np.arange(seen.sum()))
        answer = [*encode(question.answer), CHAT.end]
        assert [token for _, token in targets] == answer
        # The first target is predicted by the prompt's last token, each later one by the target before it.
        where = np.flatnonzero(seen)
        assert [index for index, _ in targets] == where[len(prompt) - 1 :].tolist()
        assert packed.tokens.ids[where[len(prompt) :]].tolist() == answer[:-1]


def test_only_answers_are_targets() -> None:
    clip, media = _clip_and_media()
    packed = pack(media, questions(clip), encode, CHAT, "blocks", MODEL, 400)
    batch = collate([(packed, media)], 400, len(packed.questions))
    pairs = {
        (int(i), int(t)) for i, t in zip(batch["target_index"].ravel(), batch["target"].ravel(), strict=True) if t >= 0
    }
    assert pairs == {pair for targets in packed.targets for pair in targets}
    assert (batch["segment"][0, len(packed.tokens) :] == -1).all()


def test_questions_that_do_not_fit_are_left_out() -> None:
    clip, media = _clip_and_media()
    everything = pack(media, questions(clip), encode, CHAT, "blocks", MODEL, 400)
    fewer = pack(media, questions(clip), encode, CHAT, "blocks", MODEL, len(everything.tokens) - 1)
    assert len(fewer.questions) == len(everything.questions) - 1
    with pytest.raises(ValueError, match="use a longer bucket"):
        pack(media, questions(clip), encode, CHAT, "blocks", MODEL, int(np.sum(everything.segment == 0)) + 3)
    rows = question_rows(clip, media, encode, CHAT, "blocks", MODEL, len(everything.tokens) - 1)
    assert [q for row in rows for q in row.questions] == questions(clip)


def test_mask_is_causal_and_separates_questions() -> None:
    segment = np.array([[0, 0, 1, 1, 2, -1]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(packed_mask(jnp.asarray(segment))[0].astype(jnp.int32), expected)


def test_an_answer_is_right_only_as_a_whole() -> None:
    target = np.array([[[7, 3, -1], [7, 8, 3], [7, 8, 3]]])
    chosen = np.array([[[7, 3, 9], [7, 8, 4], [7, 8, 3]]])
    assert np.asarray(exact_answers(jnp.asarray(chosen), jnp.asarray(target))).tolist() == [[True, False, True]]


def test_redrawn_pictures_keep_times_and_differ_in_class() -> None:
    clip = SyntheticPool().clip(1)
    redrawn = redraw_pictures(np.random.default_rng(0), clip, SOURCES)
    assert [(p.start, p.end) for p in redrawn.pictures] == [(p.start, p.end) for p in clip.pictures]
    assert len({p.name for p in redrawn.pictures}) == len(clip.pictures)
    assert all(SOURCES.picture_names[SOURCES.picture_labels[p.picture]] == p.name for p in redrawn.pictures)
    assert redrawn.sounds == clip.sounds


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, again = batch_maker().training(4), batch_maker().training(4)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name], err_msg=name)
    other = batch_maker(dataclasses.replace(CONFIG, seed=1)).training(4)
    assert any((first[name] != other[name]).any() for name in first)
    streamed = list(batch_maker().stream(7))
    assert len(streamed) == CONFIG.steps - 7
    np.testing.assert_array_equal(streamed[0]["tokens"], batch_maker().training(7)["tokens"])
