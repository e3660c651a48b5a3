"""The task `clips`: its answers are those of an unpruned model where nothing is pruned, and which questions it asks."""

import pytest

import acckv_jax as kv
from eval.benchmark import build_policies
from eval.held_out import HeldOutClips
from eval.metrics import CUT_OFF
from eval.tasks.clips import LONG, Clips, LongClips, one_of_each
from models.answering import EncodedClip, answer
from models.interface import EmbeddedPrompt


@pytest.fixture(scope="module")
def task(small_model):
    return Clips(small_model, HeldOutClips.load(small_model.encoders))


@pytest.mark.complete
def test_without_pruning_answers_are_those_of_the_whole_prompt(task):
    example = task.example("0")
    policies = build_policies(("h2o",), ("1.0",), task)
    found = {variant.policy: said for variant, said in task.answers(example, policies, list(policies))}
    assert found.keys() == {"full", "h2o"}
    assert [said.answers for said in found["full"]] == [said.answers for said in found["h2o"]]
    length, decoder = len(example.prefix), task.model.decoder_config
    for said, [question, _] in zip(found["full"], example.conversations, strict=True):
        tokens = length + len(task.model.encode_question(question.text)) - 1  # the last is held back
        slot = 2 * decoder.head_dim * 4 + 4 + 1 + 1 + 4 + 4  # keys and values; index, modality, valid, weight and mass
        size = tokens * slot * decoder.num_key_value_heads * decoder.num_hidden_layers
        assert said.cache_bytes == size
    assert [said.cache_bytes for said in found["h2o"]] == [said.cache_bytes for said in found["full"]]

    def alone(before: EmbeddedPrompt, text: str) -> str:
        clip = EncodedClip(task.model, before)
        return answer(task.model, clip, text, policy=kv.Full(), max_new_tokens=4).text

    for conversation, said in list(zip(example.conversations, found["full"], strict=True))[:2]:
        first, second = (text.removesuffix(CUT_OFF).strip() for text in said.answers)
        question, following = conversation
        assert first == alone(example.prefix, question.text)
        both = task.model.encode_next_question(question.references[0], following.text)
        turn, _ = both.split(len(both) - len(task.model.encode_question(following.text)))
        before = example.prefix.then(task.model.encode_question(question.text)).then(turn)
        assert second == alone(before, following.text)


def test_a_second_question_is_another_one_of_the_clip(task):
    [(number, clip, _)] = task.clips.numbered([3])
    asked = [question.text for question in one_of_each(clip, number)]
    pairs = [(first.text, second.text) for first, second in task.example("3").conversations]
    assert [first for first, _ in pairs] == asked
    assert [second for _, second in pairs] == [*asked[1:], asked[0]]


def test_long_clips_are_the_long_ones_of_all(task):
    found = LongClips(task.model, task.clips).ids
    assert {id for id in task.ids[:100] if task.clips.pool.clip(int(id)).seconds >= LONG} == set(found) & set(
        task.ids[:100]
    )
    assert 0 < len(found) < len(task.ids)
