"""`Retold`: the best of two lists in turn, against plain NumPy."""

import numpy as np
import pytest

import acckv_jax as kv
from tests.acckv_jax.tiny_dense import distinct_tokens

SECOND = 12


def scored_twice(policy):
    decoder, params, ids, prompt = distinct_tokens()
    _, scored = kv.jitted.score(decoder, params, ids, prompt, (policy,))
    retelling = kv.make_prompt(np.zeros((1, SECOND), int))
    return kv.jitted.probe(decoder, params, ids[:, :SECOND], retelling, scored, (policy,))


def in_turn(asked, retold, slots, share):
    """The first tokens of both lists, of which the second has `share` of the places that are given out."""
    lists = [np.argsort(-one, kind="stable").tolist() for one in (asked, retold)]
    given, kept = [0, 0], []
    while len(kept) < slots:
        # Whose next token would be worth more: (1 - share) / (place + 1) against share / (place + 1).
        worth = [weight / (place + 1) for weight, place in zip((1 - share, share), given, strict=True)]
        which = int(worth[1] > worth[0])
        token = lists[which][given[which]]
        given[which] += 1
        if token not in kept:
            kept.append(token)
    return sorted(kept)


@pytest.mark.parametrize("share", [0.25, 0.4])  # no two places of both lists are worth the same
def test_takes_the_best_of_both_lists(share):
    policy = kv.Retold(kv.H2O(budget=20, evict_every=0, recent=0.0), share=share)
    scored = scored_twice(policy)
    cache = kv.prune(scored, policy)
    asked, retold = (np.stack(scored.attention_sums(one)) for one in policy.queries)
    for layer, own, other in zip(cache.layers, asked, retold, strict=True):
        for head in range(own.shape[1]):
            expected = in_turn(own[0, head], other[0, head], 20, share)
            found = np.asarray(layer.index)[0, head][np.asarray(layer.valid)[0, head]].tolist()
            first = in_turn(own[0, head], other[0, head], 19, share)
            assert found == expected or set(first) < set(found)  # the last place may be a tie of both lists


@pytest.mark.parametrize(("share", "alone"), [(0.0, kv.Knorm(budget=20)), (1.0, kv.KVzip(budget=20))])
def test_the_ends_are_one_list(share, alone):
    policy = kv.Retold(kv.Knorm(budget=20), share=share)
    scored = scored_twice(policy)
    for one, other in zip(kv.prune(scored, policy).layers, kv.prune(scored, alone).layers, strict=True):
        np.testing.assert_array_equal(one.index, other.index)


def test_what_the_inner_policy_keeps_whole_stays():
    policy = kv.Retold(kv.SnapKV(budget=20, window_size=8), share=1.0)
    for layer in kv.prune(scored_twice(policy), policy).layers:
        np.testing.assert_array_equal(np.asarray(layer.index)[..., -8:], np.broadcast_to(np.arange(56, 64), (1, 2, 8)))


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"share is a part of the slots from 0 to 1, not 1\.5"):
        kv.Retold(kv.SnapKV(budget=0.2), share=1.5)
