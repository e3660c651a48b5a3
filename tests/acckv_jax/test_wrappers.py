"""Wrappers beyond the contract: their options, how they nest, and what they promise by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.testing import TinyTransformer, tiny_decoder
from tests.tiers import quick_first

DECODER, PARAMS, INPUTS, PROMPT = tiny_decoder()
ODD = TinyTransformer(num_layers=2, head_dim=5)


def pruned(policy: kv.CachePolicy, model: TinyTransformer | None = None) -> kv.KVCache:
    decoder = kv.Decoder(model, model.num_layers) if model else DECODER
    params = model.init(jax.random.key(0)) if model else PARAMS
    return kv.jitted.prefill(decoder, params, INPUTS, PROMPT, policy)[1]


def indices(layer: kv.LayerCache) -> list[set[int]]:
    return [set(np.asarray(layer.index)[0, head][np.asarray(layer.valid)[0, head]].tolist()) for head in range(2)]


@pytest.mark.parametrize(
    "inner",
    quick_first(
        [
            kv.AccKV(budget=20, merge="none", gate="none"),
            kv.Knorm(budget=20),
            kv.KeyDiff(budget=20),
            kv.TOVA(budget=20),
            kv.MixKV(budget=20, window_size=4),
        ],
        3,
    ),
    ids=lambda policy: type(policy).__name__,
)
def test_protected_tokens_stay_and_the_others_compete(inner):
    ends = {*range(6), *range(60, 64)}
    plain, protected = pruned(inner), pruned(kv.Protected(inner, first=6, last=4))
    assert any(not ends <= found for layer in plain.layers for found in indices(layer))
    for layer in protected.layers:
        for found in indices(layer):
            assert ends <= found and len(found) == 20


def test_protection_adds_up():
    both = kv.Protected(kv.Protected(kv.Knorm(budget=20), first=2, last=9), first=7, last=0)
    for layer in pruned(both).layers:
        for found in indices(layer):
            assert {*range(7), *range(55, 64)} <= found and len(found) == 20


def test_a_share_of_one_is_the_inner_policy():
    inner = kv.SnapKV(budget=0.5, window_size=8)
    for ours, theirs in zip(pruned(kv.PerLayer(inner, shares=(1.0, 1.0))).layers, pruned(inner).layers, strict=True):
        assert indices(ours) == indices(theirs)


def test_few_levels_of_capacity_and_exact_budgets():
    policy = kv.PerLayer(kv.Knorm(budget=0.2), shares=tuple(np.linspace(1.8, 0.2, 30).tolist()), levels=4)
    wanted = [round(0.2 * share * 1000) for share in policy.shares]
    capacities = [policy.capacity(1000, layer) for layer in range(30)]
    assert len(set(capacities)) <= 4
    assert all(w <= c <= w + (360 - 40) / 4 for w, c in zip(wanted, capacities, strict=True))
    budgets = [int(policy.row_budget(PROMPT.length * 0 + 1000, 1000, layer)[0]) for layer in range(30)]
    assert budgets == wanted


def test_bytes_of_per_layer_are_freed():
    even, uneven = (
        kv.cache_bytes(pruned(p)).prompt
        for p in (kv.Knorm(budget=0.5), kv.PerLayer(kv.Knorm(budget=0.5), shares=(0.5, 0.25)))
    )
    assert uneven * 8 == even * 3


@pytest.mark.parametrize("bits", [8, 4])
def test_a_stack_of_quantised_layers_reads_as_its_layers(bits):
    policy = kv.Quantized(kv.Knorm(budget=0.5), bits=bits)
    cache = kv.jitted.prefill(DECODER, PARAMS, INPUTS, PROMPT, policy, reserved_slots=8)[1]
    (stack,) = kv.stack(cache).stacks
    for name in ("keys", "values"):
        layers = [getattr(layer, name) for layer in cache.layers]
        np.testing.assert_array_equal(getattr(stack, name), np.stack(layers))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: kv.Protected("snapkv"), "Protected wraps a policy such as SnapKV"),
        (lambda: kv.Protected(kv.Knorm(), first=-1), "first and last are numbers of tokens"),
        (lambda: kv.EvictEvery(kv.Knorm(), 0), "steps must be at least 1"),
        (
            lambda: kv.EvictEvery(kv.SnapKV(), 4),
            "SnapKV has no rule for pruning between decode steps .its can_evict",
        ),
        (lambda: kv.PerLayer(kv.Knorm(budget=0.5)), "shares are one positive number per layer"),
        (lambda: kv.PerLayer(kv.Knorm(budget=0.5), shares=(3.0, 0.1)), "is more than the prompt: 1.5"),
        (
            lambda: kv.PerLayer(kv.Knorm(budget=0.5), shares=(1.0,)).check_layers(2),
            "for 1 layers, and the decoder has 2",
        ),
        (
            lambda: kv.Protected(kv.PerLayer(kv.Knorm(budget=0.5), shares=(1.0, 1.0))).check_layers(1),
            "give one for each",
        ),
        (lambda: kv.PerLayer(kv.Knorm(budget=0.5), shares={1.0, 2.0}), "shares must be several values"),
        (lambda: kv.PerLayer(kv.Knorm(budget=0.5), shares=1.0), "shares must be several values"),
        (lambda: kv.PerLayer(kv.Knorm(budget=50), shares=(float("inf"), 1.0)), "shares must be a proper float"),
        (lambda: kv.PerLayer(kv.Knorm(budget=0.5), shares=(1.0, True)), "shares must be a proper float"),
        (lambda: kv.PerLayer(kv.Knorm(budget=0.5), shares=(1.0, 1.0), levels=1.5), "levels must be a proper int"),
        (lambda: kv.Protected(kv.Knorm(), first=2.5), "first must be a proper int"),
        (lambda: kv.Protected(kv.Knorm(), last="4"), "last must be a proper int"),
        (lambda: kv.Protected(kv.Knorm(), first=2**31), "first must be a number of at most 31 bits"),
        (lambda: kv.EvictEvery(kv.Knorm(), float("nan")), "steps must be a proper int"),
        (lambda: kv.Quantized(kv.Knorm(), bits=8.0), "bits must be a proper int"),
        (lambda: kv.make_policy(None), "a policy's name is a text"),
        (lambda: kv.Quantized(kv.Knorm(), bits=3), "stores 8 or 4 bits, not 3"),
        (lambda: kv.AdaKV(kv.Knorm(), floor=1.5), "floor is a share of the budget from 0 to 1, not 1.5"),
        (lambda: kv.AdaKV(kv.Knorm(), most=0.5), "most is how many times its budget a head may hold, at least 1"),
        (
            lambda: kv.AdaKV(kv.Quantized(kv.Protected(kv.Knorm()))),
            r"know the protected ones: write Protected.AdaKV",
        ),
        (lambda: kv.CriticalKV(kv.Protected(kv.H2O())), r"must know the protected ones: write Protected.CriticalKV"),
        (lambda: kv.AdaKV(Backwards(kv.Knorm())), "AdaKV would overrule how Backwards selects slots"),
        (lambda: kv.AdaKV(kv.CriticalKV(kv.H2O())), "AdaKV would overrule how CriticalKV selects slots"),
        (
            lambda: kv.CriticalKV(kv.Knorm()),
            "multiplies attention by .* Knorm reads no attention; wrap a policy that does",
        ),
        (lambda: kv.CriticalKV(kv.H2O(), first_share=-0.1), "first_share is a share of a head's slots from 0 to 1"),
        (lambda: kv.CriticalKV(kv.H2O(), epsilon=-1.0), "epsilon is added to attention, and is at least 0, not -1.0"),
        (lambda: kv.Smoothed(kv.Knorm(), energy=1.2), "energy is a share from 0 to 1, not 1.2"),
        (lambda: kv.Smoothed(kv.Knorm(), roll_off=-0.1), "roll_off is a share from 0 to 1, not -0.1"),
        (lambda: kv.CLIE(kv.StreamingLLM()), "estimates sums of attention, and StreamingLLM reads none"),
        (lambda: kv.CLIE(kv.H2O(), scored_layers=0), "scored_layers is a number of layers, at least 1, not 0"),
        (lambda: kv.CLIE(kv.H2O(), scored_layers=2).check_layers(2), "of 2 layers .* the decoder has 2: choose fewer"),
        (
            lambda: pruned(kv.AdaKV(kv.AccKV(budget=0.5, merge="summary"))),
            "merge='summary' needs slots that a wrapper's own selection does not leave; use merge='pivot'",
        ),
        (lambda: pruned(kv.Quantized(kv.Knorm(), bits=4), ODD), "a head has 5 channels: use bits=8"),
        (lambda: kv.make_policy("protected"), r"protected wraps another policy; .* such as protected\(snapkv\)"),
        (lambda: kv.make_policy("protected(quantized())"), r"quantized wraps another policy"),
        (lambda: kv.make_policy("protected(lru)"), "unknown policy 'lru'.*protected"),
        (lambda: kv.make_policy("shielded(h2o)"), "unknown policy 'shielded.h2o.'"),
        (lambda: kv.make_policy("protected(h2o)", speed=1), "'h2o' does not take these options"),
    ],
)
def test_mistakes_are_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_budgets_that_the_protected_tokens_do_not_fit():
    policy = kv.Protected(kv.Knorm(budget=10), first=4, last=16)
    with pytest.raises(ValueError, match="beside Knorm's own need 21: the smallest possible budget is 21"):
        policy.check(kv.count_tokens(PROMPT))
    with pytest.raises(ValueError, match="smallest possible budget is 8"):
        kv.PerLayer(kv.AccKV(budget=20, b_min=0), shares=(1.0, 0.1)).check(kv.count_tokens(PROMPT))
    with pytest.raises(ValueError, match="This is one layer's share of the budget 20"):
        kv.PerLayer(kv.AccKV(budget=20, b_min=0), shares=(1.0, 0.1)).check(kv.count_tokens(PROMPT))


def test_names_make_nested_wrappers():
    made = kv.make_policy("critical_kv(ada_kv(smoothed(clie(snapkv))))", budget=0.2, most=1.5, mix=0.3, scored_layers=9)
    inner = kv.Smoothed(kv.CLIE(kv.SnapKV(budget=0.2), scored_layers=9), mix=0.3)
    assert made == kv.CriticalKV(kv.AdaKV(inner, most=1.5))
    made = kv.make_policy("quantized(protected(h2o))", budget=0.3, first=2, evict_every=8)
    assert made == kv.Quantized(kv.Protected(kv.H2O(budget=0.3, evict_every=8), first=2))
    assert made.with_budget(40) == kv.Quantized(kv.Protected(kv.H2O(budget=40, evict_every=8), first=2))
    assert hash(made) == hash(kv.make_policy("quantized(protected(h2o))", budget=0.3, first=2, evict_every=8))


class Backwards(kv.Wrapper):
    """The inner policy's worst first, and the first token always; says so by scores and selection alone."""

    def token_scores(self, layer, context):
        return -self.inner.token_scores(layer, context)

    def eviction_scores(self, layer, context):
        return -self.inner.eviction_scores(layer, context)

    def select(self, scores, layer, context):
        return self.inner.select(jnp.where(layer.index == 0, jnp.inf, scores), layer, context)


def test_scores_and_selection_of_a_wrapper_are_taken():
    worst = kv.Knorm(budget=20)
    best_half = kv.Knorm(budget=44)
    for kept, others in zip(pruned(Backwards(worst)).layers, pruned(best_half).layers, strict=True):
        for ours, theirs in zip(indices(kept), indices(others), strict=True):
            assert 0 in ours and len(ours) == 20
            assert len(ours & theirs) <= 1  # the first token
    outer = pruned(Backwards(Backwards(worst)))  # what the outer one has said, the inner one leaves alone
    twice = pruned(kv.Protected(worst, first=1, last=0))
    assert [indices(layer) for layer in outer.layers] == [indices(layer) for layer in twice.layers]
    protected = pruned(Backwards(kv.Protected(worst, first=0, last=5)))
    assert all({*range(59, 64)} <= found for layer in protected.layers for found in indices(layer))


@pytest.mark.complete
def test_scores_of_a_wrapper_are_taken_between_steps():
    inner = kv.H2O(budget=20, evict_every=4)
    forwards, backwards = (
        kv.generate(DECODER, PARAMS, INPUTS, PROMPT, policy, max_new_tokens=12).state.cache.layers
        for policy in (kv.Protected(inner, first=1, last=0), Backwards(inner))
    )
    assert indices(forwards[0]) != indices(backwards[0])
    assert all(0 in found for layer in backwards for found in indices(layer))
