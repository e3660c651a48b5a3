"""Policies of an evaluation by name, and their budgets checked against a prompt."""

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

import acckv_jax
from acckv_jax import CachePolicy
from models.errors import UserError


class BudgetError(UserError):
    """A budget that is too small for a prompt."""


def split_variant(text: str) -> tuple[str, list[str]]:
    """Name and options of a policy in one word: POLICY, or POLICY:NAME=VALUE,NAME=VALUE."""
    name, _, pairs = text.partition(":")
    return name, re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", pairs) if pairs else []


def check_policies(policies: Mapping[str, CachePolicy], modality: Int[np.ndarray, " T"]) -> None:
    """Checks every policy's budget against a prompt of these modalities.

    Raises:
        BudgetError: if a budget is too small, naming the policy.
    """
    counts = acckv_jax.count_tokens(acckv_jax.make_prompt(modality[None]))
    for name, policy in policies.items():
        try:
            policy.check(counts)
        except ValueError as error:
            raise BudgetError(f"Policy {name}: {error}") from error


def check_layers(policies: Mapping[str, CachePolicy], num_layers: int) -> None:
    """Checks every policy against a decoder of so many layers.

    Raises:
        UserError: if a policy is made for another number, naming the policy.
    """
    for name, policy in policies.items():
        try:
            policy.check_layers(num_layers)
        except ValueError as error:
            raise UserError(f"Policy {name}: {error}") from error
