"""Bad input is a clear error before anything is compiled (rule 12); an empty modality is no error."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from tests.acckv_jax.contract_cases import (
    BUCKET,
    CONTRACT,
    DECODER,
    LENGTHS,
    MODEL,
    episode,
    params_of,
    random_inputs,
    read_prompt,
    run_episode,
    scored_by,
)
from tests.acckv_jax.dense import dense_logits, episode_masks, merged_slots
from tests.tiers import quick_only
from tests.tolerances import FP32, QUANTIZED

prune = jax.jit(kv.prune, static_argnames=("policy", "reserved_slots"))
read = jax.jit(read_prompt, static_argnames=("decoder", "policy", "reserved_slots"))


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
        ("h2o", {"evict_every": -1}),
        ("h2o", {"evict_every": 2.5}),
        ("streaming_llm", {"sinks": 4.0}),
        ("acckv", {"tau": float("nan")}),
        ("acckv", {"tau": "high"}),
        ("acckv", {"refill": "false"}),
        ("acckv", {"unrotated_theta": -1.0}),
        ("snapkv", {"window_size": 10**23}),
        ("random", {"seed": 2**32}),
    ],
)
def test_options_out_of_range(name, options):
    with pytest.raises(ValueError, match=re.escape(next(iter(options))) + "|cross_modal_merge"):
        kv.make_policy(name, **options)


def test_policies_without_a_rule_for_decoding_say_so_at_once():
    for name in ("full", "random", "snapkv"):
        with pytest.raises(ValueError, match="no rule for pruning between decode steps"):
            kv.EvictEvery(kv.make_policy(name), 4)
    with pytest.raises(ValueError, match="at least 1"):
        kv.EvictEvery(kv.make_policy("h2o"), 0)


SMALLEST = {"random": 24, "acckv": 25, "acckv_plus": 25, "snapkv": 32, "streaming_llm": 5}


def test_numbers_of_numpy_are_numbers():
    assert kv.SnapKV(window_size=np.int64(8)) == kv.SnapKV(window_size=8)
    assert kv.Protected(kv.Knorm(), first=np.int32(2)) == kv.Protected(kv.Knorm(), first=2)
    assert kv.Knorm(budget=np.int64(8)) == kv.Knorm(budget=8)
    assert kv.Knorm(budget=np.float32(0.5)).capacity(100, 0) == 50
    with pytest.raises(ValueError, match="budget 0 is no number of slots"):
        kv.Knorm(budget=np.int32(0))


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
        (np.zeros((2, 4)), np.array([4]), "2 whole numbers"),
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

    def run(policy: kv.CachePolicy, reserved: int, steps: int):
        logits, cache = kv.prefill(DECODER, params_of(), inputs.tokens, inputs.prompt, policy, reserved_slots=reserved)
        state = kv.start_decoding(logits, cache, jax.random.key(0))
        return kv.decode(DECODER, params_of(), state, policy, steps=steps)

    for name, reserved, steps in (("full", 3, 4), ("acckv", 0, 1), ("h2o", 0, 1), ("h2o_every_4", 0, 9)):
        with pytest.raises(ValueError, match="room"):
            jax.eval_shape(lambda args=(CONTRACT[name], reserved, steps): run(*args))
    jax.eval_shape(lambda: run(CONTRACT["h2o_every_4"], 4, 9))


def test_decoding_ends_where_the_room_ends():
    inputs, policy = random_inputs(), CONTRACT["full"]

    @jax.jit
    def run():
        logits, cache = kv.prefill(DECODER, params_of(), inputs.tokens, inputs.prompt, policy, reserved_slots=3)
        state = kv.start_decoding(logits, cache, jax.random.key(0))
        _, first, state = kv.decode(DECODER, params_of(), state, policy, steps=2)
        _, second, state = kv.decode(DECODER, params_of(), state, policy, steps=2)
        return first, second, state.cache.length

    first, second, length = run()
    assert (int(first), int(second)) == (2, 1)
    np.testing.assert_array_equal(length, LENGTHS + 3)


@pytest.mark.parametrize("name", quick_only((name for name in CONTRACT if name != "full"), ("acckv_plus",)))
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
    tolerance = QUANTIZED if name.startswith("quantized") else FP32  # each eviction quantises anew
    np.testing.assert_allclose(run.question_logits, dense[-1], **tolerance)
    for layer in run.pruned.layers:
        assert (layer.valid.sum(-1).mean(-1) <= layer.budget).all() and layer.finite.all()
        if hasattr(policy, "gate"):  # no gate without two modalities: the budget is used up
            np.testing.assert_array_equal(layer.valid[:2].sum(-1), np.broadcast_to(layer.budget[:2, None], (2, 4)))


def test_a_prompt_of_text_alone_needs_the_whole_budget():
    prompt = kv.make_prompt(np.zeros((1, BUCKET), int))
    for name in ("acckv", "acckv_plus"):
        with pytest.raises(ValueError, match="smallest possible budget is 96"):
            CONTRACT[name].check(kv.count_tokens(prompt))
        CONTRACT[name].with_budget(1.0).check(kv.count_tokens(prompt))


NO_MINIMUM = {"acckv_without_b_min": kv.AccKV(b_min=0)}


@pytest.mark.parametrize("name", [*(name for name in CONTRACT if name != "full"), *NO_MINIMUM])
def test_a_budget_that_rounds_to_nothing(name):
    counts = kv.count_tokens(kv.make_prompt(np.ones((1, 12), int)))
    with pytest.raises(ValueError, match=r"smallest possible budget is [1-9]"):
        (CONTRACT | NO_MINIMUM)[name].with_budget(0.04).check(counts)


@pytest.mark.parametrize("name", quick_only(CONTRACT, ("mada_kv", "omni_mem")))
def test_the_smallest_budget_of_a_prompt_without_text_keeps_something(name):
    policy, inputs = CONTRACT[name].with_budget(1), random_inputs()
    ids = np.asarray(inputs.prompt.modality)
    inputs = inputs._replace(prompt=kv.make_prompt(np.where(ids == kv.Modality.TEXT, kv.Modality.VIDEO, ids), LENGTHS))
    counts = kv.count_tokens(inputs.prompt)
    try:
        policy.check(counts)
    except ValueError as error:
        policy = policy.with_budget(int(re.search(r"smallest possible budget is (\d+)", str(error))[1]))
        policy.check(counts)
    _, cache = read(DECODER, params_of(), inputs, policy, reserved_slots=0)
    assert all(layer.valid.any((1, 2)).all() for layer in cache.layers)  # of AdaKV's heads some may keep nothing


def test_one_slot_and_the_whole_are_different_policies():
    one, whole = kv.make_policy("h2o", budget=1), kv.make_policy("h2o", budget=1.0)
    assert one != whole and dataclasses.replace(whole, budget=1) == one
    for policy, valid in ((whole, 96), (one, 1)):
        assert prune(scored_by("h2o"), policy).layers[0].valid[0].sum(-1).max() == valid


def test_generated_tokens_are_no_part_of_a_prompt():
    with pytest.raises(ValueError, match=r"\[3\] in a prompt"):
        kv.make_prompt(np.array([[0, 3, 1]]))
    np.testing.assert_array_equal(kv.make_prompt(np.array([[0, 1, 9]]), np.array([2])).modality, [[0, 1, 0]])
    with pytest.raises(ValueError, match="whole numbers"):
        kv.make_prompt(np.zeros((1, 4), int), np.array([3.7]))


def test_a_prompt_is_pruned_by_its_own_sums_and_when_it_is_complete():
    scored = scored_by("h2o")
    for name in ("acckv", "snapkv"):
        with pytest.raises(ValueError, match=r"cannot prune by the sums.*scored for QuerySet\(rows='all', last=None"):
            kv.prune(scored, CONTRACT[name])
    with pytest.raises(ValueError, match="cannot prune by the sums"):
        kv.prune(scored_by("acckv"), CONTRACT["acckv_plus"])
    with pytest.raises(ValueError, match="was not scored for"):
        scored.attention_sums(kv.QuerySet("text"))
    kv.prune(scored, CONTRACT["knorm"])  # reads no sums at all
    with pytest.raises(ValueError, match="complete=True"):
        kv.prune(dataclasses.replace(scored, complete=False), CONTRACT["h2o"])


def run_chunk(policies, before, tokens=4, complete=True):
    prompt = kv.make_prompt(np.zeros((4, tokens), int))
    ids = np.zeros((4, tokens), np.int32)
    return jax.eval_shape(
        lambda params: kv.score(DECODER, params, ids, prompt, policies, before=before, complete=complete),
        params_of(),
    )


def test_chunks_that_cannot_follow():
    scored = scored_by("snapkv")
    open_end = dataclasses.replace(scored, complete=False)
    with pytest.raises(ValueError, match="incomplete prompt"):
        run_chunk((CONTRACT["snapkv"],), scored)
    with pytest.raises(ValueError, match="same policies"):
        run_chunk((CONTRACT["full"],), open_end)
    with pytest.raises(ValueError, match="SnapKV looks at the last 8 tokens"):
        run_chunk((CONTRACT["snapkv"],), open_end)
    run_chunk((CONTRACT["snapkv"],), open_end, tokens=8)
    run_chunk((CONTRACT["snapkv"],), open_end, complete=False)


def test_sizes_that_do_not_fit():
    prompt, ids = kv.make_prompt(np.zeros((4, 8), int)), np.zeros((4, 6), np.int32)
    with pytest.raises(ValueError, match="(positions are .*4, 6)|(4 rows of 8 tokens.*4 rows of 6)"):
        jax.eval_shape(
            lambda p: kv.prefill(DECODER, p, ids, prompt, CONTRACT["full"], positions=ids),
            params_of(),
        )
    whole = kv.make_prompt(np.zeros((4, 6), int))
    for options, sentence in (
        ({"positions": ids * 1.0}, "positions are integers, not float32"),
        ({"delta": np.int32(3)}, r"delta is one number for each row, of shape \[4\], not \[\]"),
        ({"delta": np.zeros((4, 1), int)}, r"of shape \[4\], not \[4, 1\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            kv.prefill(DECODER, {}, ids, whole, CONTRACT["full"], **options)
    for wrong in (ids[:1], ids[0], {"embeddings": np.zeros((4, 5, 8))}):
        with pytest.raises(ValueError, match=r"inputs are arrays \[B, T, ...\] for a prompt of .* = \[4, 6\] tokens"):
            kv.generate(DECODER, {}, wrong, whole, CONTRACT["full"])
    with pytest.raises(ValueError, match="reserved_slots is a number"):
        kv.prune(scored_by("h2o"), CONTRACT["h2o"], reserved_slots=-1)
    with pytest.raises(ValueError, match="times"):
        kv.repeat_rows(scored_by("h2o"), 0)


@pytest.mark.complete
def test_a_further_question_can_bring_room_for_its_answer():
    policy, run = CONTRACT["acckv"], episode("acckv")
    inputs = random_inputs()
    cache = jax.tree.map(jnp.array, run.decoded)  # its room is used up
    step = functools.partial(kv.decode_step, DECODER)
    with pytest.raises(ValueError, match="room for 0 new tokens"):
        step(params_of(), inputs.forced[0], cache, policy, jnp.ones(4, bool))
    over = jax.jit(step, static_argnums=3)(params_of(), inputs.forced[0], cache, policy, jnp.ones(4, bool))[1]
    with pytest.raises(ValueError, match="without a free slot"):
        kv.check_finite(over)
    logits, cache = kv.jitted.extend(
        DECODER, params_of(), inputs.question, inputs.question_prompt, cache, policy, reserved_slots=3
    )
    state = kv.start_decoding(logits, cache, jax.random.key(0))
    _, number, state = kv.jitted.decode(DECODER, params_of(), state, policy, steps=3)
    assert int(number) == 3
    kv.check_finite(state.cache)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        kv.decode(DECODER, params_of(), state, policy, steps=0)
