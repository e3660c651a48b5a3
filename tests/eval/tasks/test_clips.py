"""The task `clips`: its answers are those of an unpruned model where nothing is pruned, and which questions it asks."""

import pytest

import acckv_jax as kv
from eval.benchmark import build_policies
from eval.held_out import GROUPS, HeldOutClips
from eval.metrics import CUT_OFF
from eval.tasks.clips import LONG, Clips, LongClips, two_kinds
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

    for conversation, said in list(zip(example.conversations, found["full"], strict=True)):
        first, second = (text.removesuffix(CUT_OFF).strip() for text in said.answers)
        question, following = conversation
        assert first == alone(example.prefix, question.text)
        both = task.model.encode_next_question(question.references[0], following.text)
        turn, _ = both.split(len(both) - len(task.model.encode_question(following.text)))
        before = example.prefix.then(task.model.encode_question(question.text)).then(turn)
        assert second == alone(before, following.text)


def test_each_of_two_questions_is_asked_first_and_second(task):
    kinds = []
    for clip_number in range(16):
        [(number, clip, _)] = task.clips.numbered([clip_number])
        one, other = (question.text for question in two_kinds(clip, number))
        conversations = task.example(str(clip_number)).conversations
        assert [[turn.text for turn in asked] for asked in conversations] == [[one, other], [other, one]]
        kinds.append({turn.group for turn in conversations[0]})
        assert len(kinds[-1]) == 2
    for layout in (0, 1):  # every kind in both
        assert set.union(*kinds[layout::2]) == set(GROUPS)


def test_long_clips_are_the_long_ones_of_all(task):
    long, first = LongClips(task.model, task.clips).ids, task.ids[:100]
    assert [id for id in first if task.clips.pool.clip(int(id)).seconds >= LONG] == [id for id in first if id in long]
    assert 0 < len(long) < len(task.ids)
