"""models.encode and models.answer: clips as values, further questions, conversations, streaming, sampling."""

import pytest

import acckv_jax as kv
import models
from eval.answer import DEMO
from tests.tiers import quick_first

QUESTIONS = ("What is shown second?", "Which number is spoken last?")
POLICIES = (kv.SnapKV(budget=0.4, window_size=8), kv.H2O(budget=0.4, evict_every=4), kv.AccKV.plus(budget=0.4))


@pytest.fixture(scope="module")
def clip(small_model):
    return models.encode(small_model, DEMO / "demo.mp4")


@pytest.mark.parametrize("policy", quick_first(POLICIES), ids=lambda policy: type(policy).__name__)
def test_further_questions_get_what_they_get_alone(policy, small_model, clip):
    options = {"policy": policy, "max_new_tokens": 5}
    alone = models.answer(small_model, DEMO / "demo.mp4", QUESTIONS[1], **options)
    first, second = (models.answer(small_model, clip, question, **options) for question in QUESTIONS)
    assert second.text == alone.text and second.token_ids == alone.token_ids
    assert first.prompt_tokens["video"] == alone.prompt_tokens["video"] > 0
    for one, other in zip(second.kept, alone.kept, strict=True):
        assert one == pytest.approx(other)
    assert alone.cache_bytes.prompt < alone.full_cache_bytes


def test_a_follow_up_is_asked_on_the_cache_that_the_answer_left(small_model, clip):
    options = {"policy": POLICIES[0], "max_new_tokens": 4}
    first = models.answer(small_model, clip, QUESTIONS[0], **options)
    slots = [layer.slots for layer in first.state.cache.layers]
    other = models.answer(small_model, clip, QUESTIONS[1], **options)
    then = models.answer(small_model, clip, QUESTIONS[1], follow_up=first, **options)
    again = models.answer(small_model, clip, QUESTIONS[1], follow_up=first, **options)
    assert then.token_ids == again.token_ids  # one answer can be followed up twice
    assert int(then.state.cache.length[0]) > int(other.state.cache.length[0])
    assert all(layer.slots > before for layer, before in zip(then.state.cache.layers, slots, strict=True))
    assert then.prompt_tokens["video"] == 0 < then.prompt_tokens["text"]


def test_streamed_pieces_are_the_answer_and_seeds_decide(small_model, clip):
    pieces: list[str] = []
    warm = {"policy": POLICIES[0], "max_new_tokens": 6, "sampler": kv.Sample(temperature=3.0)}
    found = models.answer(small_model, clip, QUESTIONS[0], stream=pieces.append, seed=1, **warm)
    assert "".join(pieces).strip() == found.text
    same, another = (models.answer(small_model, clip, QUESTIONS[0], seed=seed, **warm) for seed in (1, 2))
    assert same.token_ids == found.token_ids != another.token_ids


def test_several_clips_in_one_prompt(small_model):
    one = models.encode(small_model, DEMO / "demo.mp4")
    two = models.encode(small_model, [DEMO / "demo.mp4", DEMO / "photos" / "cat.jpg"])
    video = kv.Modality.VIDEO
    assert two.prompt.count(video) == one.prompt.count(video) + small_model.config.frame_tokens
    assert models.answer(small_model, two, "What?", policy=kv.Full(), max_new_tokens=2).text is not None


@pytest.mark.parametrize(
    ("question", "options", "sentence"),
    [
        ("What?", {"policy": kv.AccKV(budget=3)}, "smallest possible budget is"),
        (" ", {}, "question is empty"),
        ("What?", {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ("What?", {"max_new_tokens": 4000}, "ask for at most"),
    ],
)
def test_mistakes_are_one_sentence(question, options, sentence, small_model, clip):
    with pytest.raises(models.UserError, match=sentence):
        models.answer(small_model, clip, question, **options)


def test_missing_files_are_one_sentence(small_model):
    with pytest.raises(models.UserError, match="There is no file"):
        models.encode(small_model, "missing.mp4")
