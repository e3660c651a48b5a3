"""What the comparison with kvpress does without it: our side, transformers' side without a press, measures, table."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

import acckv_jax as kv
from eval.perf.beside_kvpress import (
    Cost,
    Options,
    OurRun,
    Row,
    agreement,
    chosen_policies,
    compare,
    equal_tokens,
    main,
    markdown,
    text_prompt,
)
from eval.perf.kvpress_runs import PressedRun, llama
from eval.perf.pass_key import QUESTION, pass_key_prompt
from eval.perf.presses import PRESSES, compression_ratio, shared_policies
from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.layers.init import FastRngs, init_params
from models.over_decoder import decoder_of, with_single_layers

CONFIG = DecoderConfig.tiny()
TOKENS, NEW = 32, 6


@pytest.fixture(scope="module")
def tiny():
    _, params = init_params(lambda: Decoder(CONFIG, rngs=FastRngs(0)))
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, TOKENS + 1).astype(np.int32)
    return decoder_of(CONFIG), with_single_layers(params), llama(CONFIG, params), ids


def our_run(tiny, policy):
    decoder, params, _, ids = tiny
    _, scored = kv.jitted.score(decoder, params, *text_prompt(ids), policies=(policy,))
    return OurRun(decoder, params, ids, policy, NEW, scored)


# kvpress takes the releases of transformers that know no other name for it.
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_full_caches_answer_as_none(tiny):
    """Both sides give the answer of a model that reads everything anew for each token."""
    model, ids = tiny[2:]
    runs = {"acckv_jax": our_run(tiny, kv.Full()), "kvpress": PressedRun(model, ids, None, NEW)}
    expected = list(ids)
    with torch.inference_mode():
        for _ in range(NEW):
            expected.append(int(model(torch.tensor([expected]).long()).logits[0, -1].argmax()))
    for run in runs.values():
        cache = run.prefill()
        assert run.kept(cache).shape == (2, 2, TOKENS) and run.kept(cache).all()
        for _ in range(2):  # `decode` uses up a copy of the cache
            assert list(run.decode(*run.start(cache))) == expected[-NEW:]
    row = compare(TOKENS, "full", 1.0, runs, repeats=1)
    assert (row.agreement, row.least_agreement, row.equal_tokens) == (1.0, 1.0, NEW)
    for cost in (row.ours, row.kvpress):
        assert cost.cache_bytes == 2 * TOKENS * 2 * 2 * CONFIG.head_dim * 4  # K and V, layers, KV heads, float32
        assert cost.prefill_seconds > 0 and cost.decode_ms > 0 and cost.compress_seconds is None


def test_pruned_caches(tiny):
    """A policy that ranks tokens alike at any budget: the smaller selection lies in the larger one."""
    runs = {"acckv_jax": our_run(tiny, kv.Knorm(budget=8)), "kvpress": our_run(tiny, kv.Knorm(budget=16))}
    row = compare(TOKENS, "knorm", 0.25, runs, repeats=1)
    assert row.agreement == row.least_agreement == pytest.approx(2 * 8 / (8 + 16))
    assert row.kvpress.cache_bytes == 2 * row.ours.cache_bytes == 16 * 2 * 2 * 2 * CONFIG.head_dim * 4
    assert row.ours.compress_seconds > 0
    run = runs["acckv_jax"]
    for one in (run.prefill(), run.compress()):
        keys = np.stack([np.asarray(layer.k) for layer in run.scored.cache.layers])[:, 0]  # [L, K, T, H]
        smallest = np.argsort(np.linalg.norm(keys, axis=-1), axis=-1)[..., :8]
        assert (np.nonzero(run.kept(one))[-1].reshape(2, 2, 8) == np.sort(smallest)).all()


def test_agreement_is_counted_by_layer_and_head():
    ours, theirs = np.zeros((2, 1, 2, 6), bool)
    ours[0, 0, :3] = theirs[0, 0, 1:4] = True
    ours[0, 1, :4] = theirs[0, 1, :2] = True
    np.testing.assert_allclose(agreement(ours, theirs), [[2 / 3, 4 / 6]])
    assert equal_tokens([1, 2, 3, 4], [1, 2, 5, 4]) == 2
    assert equal_tokens([1, 2], [1, 2]) == 2 and equal_tokens([1], [2]) == 0


def test_both_keep_as_many_slots():
    for tokens in (10, 333, 512, 2048):
        for slots in range(1, tokens + 1):
            assert int(tokens * (1 - compression_ratio(slots, tokens))) == slots  # as kvpress counts


def test_policies():
    assert {"full", "streaming_llm", "snapkv", "knorm", "keydiff", "tova"} <= set(shared_policies()) <= set(PRESSES)
    chosen = chosen_policies(Options(budgets=(0.5, 0.1)), 512)
    assert len(chosen) == 1 + 2 * (len(shared_policies()) - 1)
    assert chosen["snapkv", 0.1] == kv.SnapKV(budget=51)
    assert not any(policy.evict_every for policy in chosen.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "kvpress cannot be imported here; docs/beside_kvpress.md has two commands"),
        (["--policies", "acckv"], "kvpress is compared under full, "),
        (["--budgets", "1.5"], "budget 1.5 is no fraction"),
        (["--policies", "snapkv", "--budgets", "0.01"], "Policy snapkv at budget 0.01: budget 5 keeps 5 of the 512 "),
        (["--repeats", "0"], "--new-tokens and --repeats at least 1"),
        (["--out", "nowhere/rows.json"], "There is no folder nowhere"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "kvpress", None)  # as where it is not installed
    assert main(["--tokens", "512", *arguments]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1 and shown.out == ""


def encode(text):
    return list(text.encode())


def test_prompt():
    ids = pass_key_prompt(encode, 1000, seed=0)
    text = bytes(ids.tolist()).decode()
    assert len(ids) == 1000 and text.endswith(QUESTION)
    before, key, after = text.partition("The pass key is ")
    assert after[:5].isdigit() and text.count(after[:5]) == 2
    assert before.endswith((". ", ".\n "))  # between two notes
    assert (pass_key_prompt(encode, 1000, seed=0) == ids).all()
    assert (pass_key_prompt(encode, 1000, seed=1) != ids).any()
    with pytest.raises(UserError, match="takes at least 166 tokens, not 100"):
        pass_key_prompt(encode, 100, seed=0)


def test_table():
    ours, theirs = Cost(1.0, 0.0123, 4.0, 2_000_000), Cost(2.0, 0.5, 8.0, 2_500_000)
    rows = [
        Row(512, "full", 1.0, 1.0, 1.0, 16, 16, *[dataclasses.replace(ours, compress_seconds=None)] * 2),
        Row(512, "snapkv", 0.2, 0.99961, 0.9, 16, 5, ours, theirs),
        Row(2048, "snapkv", 0.2, 1.0, 1.0, 16, 16, ours, theirs),
    ]
    lines = markdown(rows).splitlines()
    assert [line for line in lines if line.startswith("#")] == ["### 512 tokens", "### 2,048 tokens"]
    assert lines[4:6] == [
        "| full | 1.0000 | 1.000 | 16 of 16 | 1.00 / 1.00 |  | 4.0 / 4.0 | 2.00 / 2.00 |",
        "| snapkv 0.2 | 0.9996 | 0.900 | 5 of 16 | 1.00 / 2.00 | 12.3 / 500.0 | 4.0 / 8.0 | 2.00 / 2.50 |",
    ]
