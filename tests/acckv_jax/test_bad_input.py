"""Bad input is a clear error before anything is compiled (rule 12); an empty modality is no error."""

import dataclasses
import re

import jax
import numpy as np
import pytest

import acckv_jax as kv
from tests.acckv_jax.contract_cases import (
    BUCKET,
    CONTRACT,
    LENGTHS,
    MODEL,
    params_of,
    random_inputs,
    run_episode,
)
from tests.acckv_jax.dense import dense_logits, episode_masks, merged_slots
from tests.tolerances import FP32


@pytest.mark.parametrize("name", kv.POLICIES)
@pytest.mark.parametrize("budget", [0, -1, 0.0, -0.1, 1.5, float("nan"), float("inf"), True, "x", None])
def test_budgets_that_are_none(name, budget):
    with pytest.raises(ValueError, match="budget"):
        kv.make_policy(name, budget=budget)


def test_unknown_policies_and_options_name_those_there_are():
    with pytest.raises(ValueError, match="'best'.*streaming_llm.*acckv_plus"):
        kv.make_policy("best")
    for name in kv.POLICIES:
        with pytest.raises(ValueError, match=f"'{name}'.*'temperature'"):
            kv.make_policy(name, temperature=1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("acckv", {"split": "even"}),
        ("acckv", {"merge": "mean"}),
        ("acckv", {"gate": "tau"}),
        ("acckv", {"rows": "video"}),
        ("acckv", {"priority_stat": "mean"}),
        ("acckv", {"n_min": 0}),
        ("acckv", {"floor": 0.6}),
        ("acckv", {"quantile": 1.1}),
        ("acckv_plus", {"recent": -1}),
        ("acckv", {"merge": "none", "cross_modal_merge": True}),
        ("snapkv", {"window_size": 0}),
        ("snapkv", {"kernel_size": 4}),
        ("h2o", {"recent": 1.5}),
        ("streaming_llm", {"sinks": -1}),
        ("h2o", {"every": -1}),
    ],
)
def test_options_out_of_range(name, options):
    with pytest.raises(ValueError, match=re.escape(next(iter(options))) + "|cross_modal_merge"):
        kv.make_policy(name, **options)


def test_policies_without_a_rule_for_decoding_say_so_at_once():
    for name in ("full", "random", "snapkv"):
        with pytest.raises(ValueError, match="no rule for pruning between decode steps"):
            kv.every_n_steps(kv.make_policy(name), 4)
    with pytest.raises(ValueError, match="at least 1"):
        kv.every_n_steps(kv.make_policy("h2o"), 0)


SMALLEST = {"random": 24, "acckv": 25, "acckv_plus": 25, "snapkv": 32, "streaming_llm": 5}


@pytest.mark.parametrize("name", SMALLEST)
def test_a_budget_too_small_names_the_smallest_that_does(name):
    prompt = kv.make_prompt(np.repeat([0, 1, 2], [24, 40, 36])[None])
    counts = kv.count_tokens(prompt)
    least = SMALLEST[name]
    for budget in (least - 1, (least - 1) / 100):
        with pytest.raises(ValueError, match=f"smallest possible budget is {least}"):
            kv.make_policy(name, budget=budget).check(counts)
    for budget in (least, least / 100):
        kv.make_policy(name, budget=budget).check(counts)


def test_summary_slots_need_room_too():
    prompt = kv.make_prompt(np.repeat([0, 1, 2], [24, 40, 36])[None])
    with pytest.raises(ValueError, match="smallest possible budget is 26"):
        kv.make_policy("acckv", budget=25, merge="summary").check(kv.count_tokens(prompt))


def test_the_fraction_that_an_error_names_suffices():
    prompt = kv.make_prompt(np.repeat([0, 1], [37, 76])[None])
    with pytest.raises(ValueError) as error:
        kv.make_policy("acckv", budget=0.2).check(kv.count_tokens(prompt))
    fraction = float(re.search(r"the fraction ([\d.]+)\)", str(error.value))[1])
    kv.make_policy("acckv", budget=fraction).check(kv.count_tokens(prompt))


def test_the_shortest_row_decides():
    ids = np.repeat([0, 1], [10, 90])[None].repeat(2, 0)
    prompt = kv.make_prompt(ids, np.array([100, 20]))
    with pytest.raises(ValueError, match=r"row 1, .*smallest possible budget is 11"):
        kv.make_policy("acckv", budget=0.3).check(kv.count_tokens(prompt))


@pytest.mark.parametrize(
    ("modality", "length", "message"),
    [
        (np.zeros((2, 0)), None, "non-empty"),
        (np.zeros(4), None, "batch, tokens"),
        (np.zeros((1, 4)), np.array([0]), "from 1 to 4"),
        (np.zeros((1, 4)), np.array([5]), "from 1 to 4"),
        (np.zeros((2, 4)), np.array([4]), "2 numbers"),
        (np.full((1, 4), 7), None, r"unknown modality ids \[7\]"),
    ],
)
def test_prompts_of_wrong_form(modality, length, message):
    with pytest.raises(ValueError, match=message):
        kv.make_prompt(modality, length)


def test_buckets_and_sampling():
    for call in (
        lambda: kv.bucket_length(0),
        lambda: kv.Sample(temperature=0.0),
        lambda: kv.Sample(top_k=0),
    ):
        with pytest.raises(ValueError):
            call()


def test_decoding_without_room_is_refused_while_tracing():
    inputs = random_inputs()

    def run(policy: kv.CachePolicy, room: int, steps: int):
        logits, cache = kv.prefill(MODEL, params_of(), inputs.tokens, inputs.prompt, policy, layers=2, room=room)
        state = kv.start_decoding(logits, cache, jax.random.key(0))
        return kv.decode(MODEL, params_of(), state, policy, steps=steps)

    for name, room, steps in (("full", 3, 4), ("acckv", 0, 1), ("h2o", 0, 1), ("h2o_every_4", 0, 9)):
        with pytest.raises(ValueError, match="room"):
            jax.eval_shape(lambda args=(CONTRACT[name], room, steps): run(*args))
    jax.eval_shape(lambda: run(CONTRACT["h2o_every_4"], 4, 9))


def test_decoding_ends_where_the_room_ends():
    inputs, policy = random_inputs(), CONTRACT["full"]

    @jax.jit
    def run():
        logits, cache = kv.prefill(MODEL, params_of(), inputs.tokens, inputs.prompt, policy, layers=2, room=3)
        state = kv.start_decoding(logits, cache, jax.random.key(0))
        _, first, state = kv.decode(MODEL, params_of(), state, policy, steps=2)
        _, second, state = kv.decode(MODEL, params_of(), state, policy, steps=2)
        return first, second, state.cache.length

    first, second, length = run()
    assert (int(first), int(second)) == (2, 1)
    np.testing.assert_array_equal(length, LENGTHS + 3)


@pytest.mark.parametrize("name", [name for name in CONTRACT if name != "full"])
def test_rows_without_audio_or_without_video(name):
    inputs = random_inputs()
    ids = np.asarray(inputs.prompt.modality).copy()
    media = (ids == kv.Modality.VIDEO) | (ids == kv.Modality.AUDIO)
    ids[0][media[0]] = kv.Modality.VIDEO
    ids[1][media[1]] = kv.Modality.AUDIO
    ids[2][media[2]] = kv.Modality.VIDEO
    ids[2, 10] = kv.Modality.AUDIO  # a single audio token
    inputs = inputs._replace(prompt=kv.make_prompt(ids, LENGTHS))
    policy = CONTRACT[name]
    policy.check(kv.count_tokens(inputs.prompt))
    run = jax.device_get(run_episode(MODEL, policy, params_of(), inputs))
    tokens, rows, masks = episode_masks(inputs, run)
    late = merged_slots(inputs, run, tokens.shape[1], policy.log_multiplicity)
    dense = dense_logits(MODEL, params_of(), tokens, rows, tuple(masks), late)
    np.testing.assert_allclose(run.question_logits, dense[-1], **FP32)
    for layer in run.pruned.layers:
        assert (layer.valid.sum(-1) <= layer.budget[:, None]).all() and layer.finite.all()
        if hasattr(policy, "gate"):  # no gate without two modalities: the budget is used up
            np.testing.assert_array_equal(layer.valid[:2].sum(-1), np.broadcast_to(layer.budget[:2, None], (2, 4)))


def test_a_prompt_of_text_alone_needs_the_whole_budget():
    prompt = kv.make_prompt(np.zeros((1, BUCKET), int))
    for name in ("acckv", "acckv_plus"):
        with pytest.raises(ValueError, match="smallest possible budget is 96"):
            CONTRACT[name].check(kv.count_tokens(prompt))
        dataclasses.replace(CONTRACT[name], budget=1.0).check(kv.count_tokens(prompt))
