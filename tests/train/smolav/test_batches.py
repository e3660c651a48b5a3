"""Packing: segments, positions, targets, and what a batch's arrays hold."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from models.smolav.config import LAYOUTS
from models.smolav.preprocess import EncodedMedia
from tests.prompts import embeddings, prompt_tokens
from tests.small_smolav import small_smolav
from tests.train.synthetic import CHAT, CONFIG, MODEL, SOURCES, SyntheticPictures, SyntheticPool, batch_maker, encode
from train.data.questions import KINDS, Question, draw_conversations, questions
from train.smolav.batches import collate, pack, question_rows, redraw_pictures
from train.smolav.losses import exact_answers, packed_mask


def _clip_and_media():
    pool = SyntheticPool()
    clip = pool.clip(0)
    return clip, EncodedMedia(SyntheticPictures().take(clip.picture_ids), pool.audio(0))


def _pack(asked, media, length=400, targets=400, layout="blocks"):
    return pack(media, [(question,) for question in asked], encode, CHAT, layout, MODEL, length, targets)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_packed_question_reads_as_its_own_prompt(layout: str) -> None:
    clip, media = _clip_and_media()
    asked = questions(clip)
    packed = _pack(asked, media, layout=layout)
    assert packed.questions == tuple(asked)
    assert packed.turns == (1,) * len(asked)
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
    conversations = draw_conversations(np.random.default_rng(0), clip, 12, KINDS, 4)
    packed = pack(media, conversations, encode, CHAT, "blocks", MODEL, 400, 100)
    assert packed.questions == tuple(question for conversation in conversations for question in conversation)
    batch = collate([(packed, media)], 400, 100)
    arrays = [batch[name][0] for name in ("question", "turn", "index", "target")]
    found = [tuple(map(int, values)) for values in zip(*arrays, strict=True) if values[-1] >= 0]
    turns = [0 if q.kind == "transcript" else turn for q, turn in zip(packed.questions, packed.turns, strict=True)]
    assert {0, 1, 2} <= set(turns)
    assert found == [(n, turns[n], *pair) for n, targets in enumerate(packed.targets) for pair in targets]
    assert (batch["segment"][0, len(packed.tokens) :] == -1).all()


def test_questions_that_do_not_fit_are_left_out() -> None:
    clip, media = _clip_and_media()
    everything = _pack(questions(clip), media)
    fewer = _pack(questions(clip), media, len(everything.tokens) - 1)
    assert len(fewer.questions) == len(everything.questions) - 1
    assert _pack(questions(clip), media, targets=5).questions == tuple(questions(clip)[:2])
    with pytest.raises(ValueError, match="use a longer bucket"):
        _pack(questions(clip), media, int(np.sum(everything.segment == 0)) + 3)
    rows = question_rows(clip, media, encode, CHAT, "blocks", MODEL, len(everything.tokens) - 1, 400)
    assert [q for row in rows for q in row.questions] == questions(clip)


def test_a_conversation_reads_as_the_model_has_it_asked() -> None:
    model = small_smolav()
    asked = [
        Question("video", "what_order", "What is shown first?", "frog"),
        Question("transcript", "heard", "Say everything that is heard, in order.", "two harp"),
        Question("audio", "number", "Which number is spoken?", "six"),
    ]
    media = EncodedMedia(np.zeros((1, 16, 320), np.float32), np.zeros((10, 384), np.float32))

    def read(text: str) -> list[int]:
        return model.tokenizer.encode(text).ids

    packed = pack(media, [asked[:1], asked], read, model.chat, "interleaved", model.config, 200, 200)
    prompts = [model.encode_question(asked[0].text)]
    prompts += [
        model.encode_next_question(before.answer, after.text) for before, after in zip(asked, asked[1:], strict=False)
    ]
    whole = prompts[0].then(prompts[1]).then(prompts[2])
    own = packed.segment == 2
    expected = embeddings(whole.then(model.embed_text(read(asked[-1].answer))))
    np.testing.assert_array_equal(embeddings(model.embed_text(packed.tokens.ids[own].tolist())), expected)
    np.testing.assert_array_equal(packed.positions[own], np.sum(packed.segment == 0) + np.arange(len(expected)))
    # The tokens that predict an answer's first are the last of its prompt.
    ends = np.cumsum([len(prompt) for prompt in prompts]) - 1
    assert [targets[0][0] for targets in packed.targets[1:]] == np.flatnonzero(own)[ends].tolist()
    assert packed.turns == (1, 1, 2, 3)


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
    target = np.array([[7, 3, 7, 8, 3, 7, 8, 3, -1]])
    chosen = np.array([[7, 3, 7, 8, 4, 7, 8, 3, 0]])
    question = np.array([[0, 0, 1, 1, 1, 2, 2, 2, 0]])
    right, weight = exact_answers(*(jnp.asarray(x) for x in (chosen, target, question)))
    assert np.asarray(right).tolist() == [[True] * 2 + [False] * 3 + [True] * 3 + [False]]
    np.testing.assert_allclose(weight, [[1 / 2] * 2 + [1 / 3] * 6 + [0]], rtol=1e-6)


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
