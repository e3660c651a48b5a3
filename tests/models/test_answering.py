"""Clips as values, and answers about them: alone, among others, in a conversation, sampled, streamed."""

import dataclasses
import functools

import numpy as np
import pytest

import acckv_jax as kv
import models
from acckv_jax import POLICIES, bucket_length
from models import answering
from models.batching import in_bucket
from models.errors import UserError
from models.media.clip import Media
from models.smolav.params import FOLDER
from tests.acckv_jax.contract_cases import allowed
from tests.programs import new_programs
from tests.small_smolav import small_smolav
from tests.tiers import quick_only

CLIP = FOLDER / "demo" / "demo.mp4"
QUESTIONS = ("What is shown second?", "Which number is spoken last?")
TOKENS = 6  # everywhere, so that programs are shared


@pytest.fixture(scope="module")
def model():
    return small_smolav()


@pytest.fixture(scope="module")
def clip(model):
    return models.encode(model, CLIP)


def media(seconds, seed=0):
    """Noise to see, and a tone."""
    frames = np.random.default_rng(seed).integers(0, 255, (round(seconds), 224, 224, 3)).astype(np.uint8)
    return Media(frames, np.sin(np.arange(round(seconds * 16000)) / (8 + seed)).astype(np.float32) / 4)


@pytest.mark.parametrize("name", quick_only(POLICIES, ("snapkv",)))
def test_a_question_gets_the_same_answer_alone_and_among_others(name, model, clip):
    policy = kv.make_policy(name, budget=1.0 if name == "full" else 0.2)
    ask = functools.partial(models.answer, model, policy=policy, max_new_tokens=TOKENS)
    alone = ask(CLIP, QUESTIONS[1])
    ask(clip, QUESTIONS[0])
    (prefill,) = clip.prefills
    pieces = []
    among = ask(clip, QUESTIONS[1], stream=pieces.append)
    assert clip.prefills == [prefill]
    assert alone.text == among.text == "".join(pieces).strip() != ""
    assert (alone.token_ids, alone.prompt_tokens) == (among.token_ids, among.prompt_tokens)
    # Two buckets instead of one may allocate a few slots more, but never let a row keep more.
    length = np.array([sum(alone.prompt_tokens.values())])
    for one, other in zip(alone.kept, among.kept, strict=True):
        assert one == pytest.approx(other)
    kept = [sum(one.values()) for one in alone.kept]
    if name in ("pyramid_kv", "mada_kv"):  # a budget for all layers together
        assert np.mean(kept) - 0.5 <= round(policy.budget * length[0])
    else:
        assert all(slots <= allowed(policy, length, layer) for layer, slots in enumerate(kept))


def test_bytes_are_what_the_budget_promises(model):
    ask = functools.partial(models.answer, model, CLIP, QUESTIONS[0], max_new_tokens=TOKENS)
    found = ask(policy=kv.AccKV.plus(budget=0.2))
    bucket = bucket_length(sum(found.prompt_tokens.values()))
    decoder = model.config.decoder
    slot = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * 4
    assert found.full_cache_bytes == bucket * slot
    assert found.cache_bytes.prompt == round(0.2 * bucket) * slot
    default = ask()  # .3 of the tokens in 4 bits each instead of 32, and their scales
    assert 0.3 / 8 * bucket * slot < default.cache_bytes.prompt < 0.1 * bucket * slot


@pytest.mark.complete
@pytest.mark.parametrize("layout", ["interleaved", "blocks"])
def test_sound_alone_and_pictures_alone(layout, model):
    both = media(3)
    for shown, absent in ((Media(both.frames, None), "audio"), (Media(None, both.audio), "video")):
        policy = kv.AccKV(budget=0.6)
        found = models.answer(model, shown, "What?", policy=policy, max_new_tokens=TOKENS, layout=layout)
        assert found.prompt_tokens[absent] == 0 and sum(found.prompt_tokens.values()) > 30


def test_a_conversation_is_what_reading_all_of_it_gives(model, clip):
    """Nothing pruned: the answer's last token, the end of its turn and the question follow the cached tokens."""
    ask = functools.partial(models.answer, model, max_new_tokens=TOKENS)
    first = ask(clip, QUESTIONS[0], policy=kv.Full())
    second = ask(clip, QUESTIONS[1], follow_up=first)
    other = ask(clip, "What is heard?", follow_up=first)
    assert ask(clip, QUESTIONS[1], follow_up=first).token_ids == second.token_ids  # nor do conversations mix
    history = clip.prompt.then(model.encode_question(QUESTIONS[0])).then(model.embed_text(first.token_ids[:-1]))
    for question, found in ((QUESTIONS[1], second), ("What is heard?", other)):
        whole = history.then(model.encode_next_question(first.token_ids[-1:], question))
        reading = answering.read_alone(model, whole, question, kv.Full(), TOKENS)
        *_, expected = answering.write_answer(model, reading, TOKENS)
        assert found.token_ids == expected.token_ids
        assert int(found.state.cache.length[0]) == len(whole) + len(found.token_ids) - 1
    third = ask(None, "Why?", follow_up=second)
    assert third.cache_bytes.prompt > second.cache_bytes.prompt and third.full_cache_bytes > second.full_cache_bytes


def test_a_conversation_stays_on_the_pruned_cache(model, clip):
    ask = functools.partial(models.answer, model, max_new_tokens=TOKENS)
    first = ask(clip, QUESTIONS[0], policy=kv.SnapKV(budget=0.2))
    second = ask(clip, QUESTIONS[1], follow_up=first)
    assert second.policy == first.policy and second.prompt_tokens["video"] == 0
    for before, after in zip(first.kept, second.kept, strict=True):
        assert (after["video"], after["audio"]) == (before["video"], before["audio"])
        assert after["text"] == before["text"] + second.prompt_tokens["text"]


def test_the_rest_of_an_answer_stands_before_the_next_question(model):
    """An unfinished answer ends in a token that is not cached; of a finished one that token is its end, once."""
    ends, words = model.chat.end, model.tokenizer.encode("a cat").ids
    lengths = [len(model.encode_next_question(rest, "Why?")) for rest in ([ends], words, [*words, ends], "a cat")]
    assert lengths[1] == lengths[2] == lengths[3] == lengths[0] + len(words)


def test_draws_come_from_the_seed(model, clip):
    ask = functools.partial(models.answer, model, clip, QUESTIONS[0], sampler=kv.Sample(2.0, 50), max_new_tokens=TOKENS)
    first, again, other = ask(seed=1), ask(seed=1), ask(seed=2)
    assert first.token_ids == again.token_ids != other.token_ids


@pytest.mark.complete
@pytest.mark.parametrize("layout", ["interleaved", "blocks"])
def test_clips_one_after_the_other(layout, model):
    """Two clips are what one of both makes, where the first one lasts whole seconds."""
    first, second = media(3), media(2, seed=1)
    joined = Media(np.concatenate([first.frames, second.frames]), None)
    apart = [Media(clip.frames, None) for clip in (first, second)]
    ask = functools.partial(
        models.answer, model, question="What?", policy=kv.Full(), layout=layout, max_new_tokens=TOKENS
    )
    assert ask(clip=apart).token_ids == ask(clip=joined).token_ids
    both, turned = (model.encode_media(clips, layout) for clips in ([first, second], [second, first]))
    shown, otherwise = (np.concatenate(prompt.buffers)[prompt.rows] for prompt in (both, turned))
    assert shown.shape == otherwise.shape and np.abs(shown - otherwise).max() > 0.01
    assert both.count(kv.Modality.VIDEO) == 5 * 16 and both.count(kv.Modality.AUDIO) == 50
    changes = np.count_nonzero(np.diff(both.modality))
    assert changes == (2 if layout == "blocks" else 10)  # from text to pictures to sound, or by turns


def test_other_lengths_in_the_same_buckets_compile_nothing(model):
    def prompt(seconds):
        return in_bucket(model.encode_media(media(seconds), "interleaved").then(model.encode_question("What?")))

    shape = prompt(10.1).inputs.shape
    with new_programs() as found:
        assert [prompt(seconds).inputs.shape for seconds in (10.4,)] == [shape]
    assert not found


def test_a_clip_and_a_picture(model, clip):
    both = models.encode(model, [CLIP, CLIP.parent / "photos" / "cat.jpg"])
    assert both.prompt.count(kv.Modality.VIDEO) == clip.prompt.count(kv.Modality.VIDEO) + model.config.frame_tokens


def test_damage_is_told(model):
    shown = Media(media(2).frames, None, notes=("1 of 9 packets are damaged.",))
    assert models.encode(model, [shown, media(1)]).notes == shown.notes


def test_mistakes_are_one_sentence(model, clip):
    first = models.answer(model, clip, QUESTIONS[0], policy=kv.SnapKV(budget=0.2), max_new_tokens=TOKENS)
    for arguments, sentence in (
        ({"clip": clip, "max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"clip": clip, "layout": "blocks"}, "encoded already"),
        ({"clip": CLIP, "layout": "diagonal"}, "Unknown layout 'diagonal'"),
        ({"clip": []}, "no clip to ask about"),
        ({"clip": None}, "no clip to ask about"),
        ({"clip": clip, "follow_up": first, "policy": kv.Full()}, "leave the policy out"),
        ({"clip": None, "follow_up": first, "max_new_tokens": 5000}, "ask for at most"),
        ({"clip": clip, "policy": kv.AccKV(budget=5)}, "smallest possible budget is"),
        ({"clip": "missing.mp4"}, "There is no file missing.mp4"),
    ):
        with pytest.raises(UserError, match=sentence):
            models.answer(model, question="What?", **arguments)
    with pytest.raises(UserError, match="encode it anew"):
        models.answer(dataclasses.replace(model), clip, "What?")
    with pytest.raises(UserError, match="question is empty"):
        models.answer(model, None, " ", follow_up=first)
