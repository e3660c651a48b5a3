"""Policies as users type them."""

import numpy as np
import pytest

import acckv_jax
from acckv_jax import Modality
from eval.policies import build_policy, check_policies
from models.errors import UserError


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
    defaults = {"tau": 0.6, "window_size": 16, "every": 0}
    assert build_policy("acckv", 0.5, (), **defaults) == acckv_jax.make_policy("acckv", budget=0.5, tau=0.6)
    assert build_policy("acckv_plus", 9, ["tau=0.3"], **defaults) == acckv_jax.make_policy(
        "acckv_plus", budget=9, tau=0.3
    )
    assert build_policy("snapkv", 0.5, (), **defaults) == acckv_jax.make_policy("snapkv", budget=0.5, window_size=16)
    assert build_policy("h2o", 0.5, (), **defaults) == acckv_jax.make_policy("h2o", budget=0.5, every=0)
    assert build_policy("full", 1.0, (), **defaults) == acckv_jax.make_policy("full")
    assert build_policy("acckv", 0.5, ["floor=0.1", "floor=0.2"]) == build_policy("acckv", 0.5, ["floor=0.2"])


@pytest.mark.parametrize(
    ("name", "option", "sentence"),
    [
        ("lru", "every=1", "unknown policy 'lru'; choose one of full,"),
        ("acckv", "floor", "'floor' has no value; write NAME=VALUE"),
        ("acckv", "speed=9", "no option 'speed'; choose one of every,"),
        ("acckv", "budget=9", "no option 'budget'"),
        ("acckv", "=9", "no option ''"),
        ("acckv", "merge=", "merge of policy acckv cannot be ''; give pivot or summary or none"),
        ("acckv", "refill=1", "cannot be '1'; give true or false"),
        ("acckv", "n_min=2.5", "give a whole number"),
        ("acckv", "n_min=true", "give a whole number"),
        ("acckv", "unrotated_theta=x", "give a number or none"),
        ("acckv", "floor=0.7", "0 to 0.5, not 0.7"),
        ("snapkv", "kernel_size=4", "kernel_size must be odd"),
        ("full", "every=3", "use every=0"),
    ],
)
def test_mistakes_are_one_sentence(name, option, sentence):
    with pytest.raises(UserError) as error:
        build_policy(name, 0.5, [option])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_budgets_are_checked_against_the_prompt():
    modality = np.array([Modality.TEXT] * 10 + [Modality.VIDEO] * 30)
    policies = {name: build_policy(name, 20) for name in ("full", "acckv", "snapkv")}
    with pytest.raises(UserError, match=r"Policy snapkv: .*smallest possible budget is 32"):
        check_policies(policies, modality)
    check_policies({"snapkv": build_policy("snapkv", 20, ["window_size=20"])}, modality)
