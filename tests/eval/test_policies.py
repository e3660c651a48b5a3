"""Policies as users type them."""

import numpy as np
import pytest

import acckv_jax
from acckv_jax import Modality
from eval.policies import check_layers, check_policies, split_variant
from models.errors import UserError
from models.policies import build_policy


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("merge=none", "none"),
        ('merge="summary"', "summary"),
        ("split = proportional", "proportional"),
        ("refill=true", True),
        ("refill=False", False),
        ("n_min=16", 16),
        ("floor=0.2", 0.2),
        ("tau=1", 1),
        ("tau=-1e-3", -1e-3),
        ("unrotated_theta=none", None),
        ("unrotated_theta=10000", 10000),
    ],
)
def test_values_have_the_type_of_the_option(option, value):
    found = getattr(build_policy("acckv", 0.5, [option]), option.partition("=")[0].strip())
    assert found == value
    assert type(found) is type(value)


def test_defaults_are_for_policies_that_have_them_and_yield_to_the_user():
    defaults = {"tau": 0.6, "window_size": 16, "evict_every": 0}
    assert build_policy("acckv", 0.5, (), **defaults) == acckv_jax.make_policy("acckv", budget=0.5, tau=0.6)
    assert build_policy("acckv_plus", 9, ["tau=0.3"], **defaults) == acckv_jax.make_policy(
        "acckv_plus", budget=9, tau=0.3
    )
    assert build_policy("snapkv", 0.5, (), **defaults) == acckv_jax.make_policy("snapkv", budget=0.5, window_size=16)
    assert build_policy("h2o", 0.5, (), **defaults) == acckv_jax.make_policy("h2o", budget=0.5, evict_every=0)
    assert build_policy("full", 1.0, (), **defaults) == acckv_jax.make_policy("full")
    assert build_policy("acckv", 0.5, ["floor=0.1", "floor=0.2"]) == build_policy("acckv", 0.5, ["floor=0.2"])


@pytest.mark.parametrize(
    ("name", "option", "sentence"),
    [
        ("lru", "evict_every=1", "unknown policy 'lru'; choose one of full,"),
        ("acckv", "floor", "'floor' has no value; write NAME=VALUE"),
        ("acckv", "speed=9", "no option 'speed'; choose one of evict_every,"),
        ("acckv", "budget=9", "no option 'budget'"),
        ("acckv", "=9", "no option ''"),
        ("acckv", "merge=", "merge of policy acckv cannot be ''; give pivot or summary or none"),
        ("acckv", "refill=1", "cannot be '1'; give true or false"),
        ("acckv", "n_min=2.5", "give a whole number"),
        ("acckv", "n_min=true", "give a whole number"),
        ("acckv", "unrotated_theta=x", "give a number or none"),
        ("acckv", "floor=0.7", "0 to 0.5, not 0.7"),
        ("snapkv", "kernel_size=4", "kernel_size must be odd"),
        ("full", "evict_every=3", "use evict_every=0"),
        ("protected(snapkv)", "inner=full", "no option 'inner'; choose one of first, last, evict_every, window_size"),
        ("protected(snapkv)", "first=0.5", "first of policy protected(snapkv) cannot be '0.5'; give a whole number"),
        ("protected(lru)", "first=1", "unknown policy 'lru'"),
        ("protect(snapkv)", "first=1", "unknown policy 'protect(snapkv)'; choose one of full,"),
        ("protected(snapkv", "first=1", "unknown policy 'protected(snapkv'"),
        ("per_layer(snapkv)", "shares=1,x", "cannot be '1,x'; give a number, or several with commas between them"),
        ("per_layer(snapkv)", "levels=2", "shares are one positive number per layer, not ()"),
        ("per_layer(snapkv)", "shares=1,3", "a share of 3 of the budget 0.5 is more than the prompt"),
    ],
)
def test_mistakes_are_one_sentence(name, option, sentence):
    with pytest.raises(UserError) as error:
        build_policy(name, 0.5, [option])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_options_reach_wrappers_and_the_policies_inside():
    options = ["first=8", "window_size=20"]
    defaults = {"window_size": 16, "evict_every": 0, "tau": 0.6}
    built = build_policy("protected(snapkv)", 0.2, options, **defaults)
    assert built == acckv_jax.Protected(acckv_jax.SnapKV(budget=0.2, window_size=20), first=8)
    built = build_policy("protected(evict_every(h2o))", 0.2, ["last=4", "steps=8"], evict_every=0)
    h2o = acckv_jax.H2O(budget=0.2, evict_every=0)
    assert built == acckv_jax.Protected(acckv_jax.EvictEvery(h2o, steps=8), last=4)
    built = build_policy("quantized(per_layer(acckv))", 100, ["shares=1.5, 1,0.5", "tau=0.3"], tau=0.6)
    inner = acckv_jax.AccKV(budget=100, tau=0.3)
    assert built == acckv_jax.Quantized(acckv_jax.PerLayer(inner, shares=(1.5, 1, 0.5)))
    assert build_policy("per_layer(knorm)", 0.5, ["shares=1"]) == acckv_jax.PerLayer(
        acckv_jax.Knorm(budget=0.5), shares=(1,)
    )


def test_one_word_holds_a_policy_and_its_options():
    assert split_variant("snapkv") == ("snapkv", [])
    assert split_variant("snapkv:window_size=8,kernel_size=3") == ("snapkv", ["window_size=8", "kernel_size=3"])
    assert split_variant("per_layer(h2o):shares=1.5,0.5,levels=2") == ("per_layer(h2o)", ["shares=1.5,0.5", "levels=2"])


def test_budgets_are_checked_against_the_prompt():
    modality = np.array([Modality.TEXT] * 10 + [Modality.VIDEO] * 30)
    policies = {name: build_policy(name, 20) for name in ("full", "acckv", "snapkv")}
    with pytest.raises(UserError, match=r"Policy snapkv: .*smallest possible budget is 32"):
        check_policies(policies, modality)
    check_policies({"snapkv": build_policy("snapkv", 20, ["window_size=20"])}, modality)


def test_shares_for_another_number_of_layers_are_told():
    policy = build_policy("per_layer(knorm)", 0.5, ["shares=1,1"])
    check_layers({"per_layer(knorm)": policy}, 2)
    with pytest.raises(UserError, match=r"Policy per_layer\(knorm\): PerLayer has shares for 2 layers.* has 30"):
        check_layers({"per_layer(knorm)": policy}, 30)
