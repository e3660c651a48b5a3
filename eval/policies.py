"""Policies from what a user typed, and their budgets checked against a prompt."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import Int

import acckv_jax
from acckv_jax import CachePolicy
from models.errors import UserError

WORDS = {"true": True, "false": False, "none": None, "null": None}
KINDS = {bool: "true or false", int: "a whole number", float: "a number", type(None): "none"}


def build_policy(name: str, budget: float | int, options: Sequence[str] = (), **defaults: Any) -> CachePolicy:
    """A policy as typed.

    Args:
        name: a key of `acckv_jax.POLICIES`.
        budget: fraction of the prompt (float) or number of slots (int).
        options: NAME=VALUE pairs; of several with one name the last counts.
        **defaults: options such as `tau`, each set if the policy has it and the user gave none.

    Raises:
        UserError: on an unknown name, option or value.
    """
    try:
        kind = type(acckv_jax.make_policy(name))
        hints = get_type_hints(kind)
        settable = [field.name for field in dataclasses.fields(kind) if field.init and field.name != "budget"]
        types = {key: hints[key] for key in settable}
        given = dict(_parsed(name, option, types) for option in options)
        fitting = {key: value for key, value in defaults.items() if key in types}
        return acckv_jax.make_policy(name, budget=budget, **(fitting | given))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{error}") from error


def check_policies(policies: Mapping[str, CachePolicy], modality: Int[np.ndarray, " T"]) -> None:
    """Checks every policy's budget against a prompt of these modalities.

    Raises:
        UserError: if a budget is too small, naming the policy.
    """
    counts = acckv_jax.count_tokens(acckv_jax.make_prompt(modality[None]))
    for name, policy in policies.items():
        try:
            policy.check(counts)
        except ValueError as error:
            raise UserError(f"Policy {name}: {error}") from error


def _parsed(policy: str, option: str, types: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and value of a NAME=VALUE pair; the value's type is that of the policy's option."""
    key, equals, text = (part.strip() for part in option.partition("="))
    if not equals:
        raise UserError(f"Option {option!r} has no value; write NAME=VALUE.")
    if key not in types:
        raise UserError(f"Policy {policy} has no option {key!r}; choose one of {', '.join(types)}.")
    bare = text.strip("\"'")
    if get_origin(types[key]) is Literal:
        allowed, value = get_args(types[key]), bare
        right = value in allowed
    else:
        allowed = get_args(types[key]) or (types[key],)
        value = _value(bare)
        right = type(value) in allowed or (type(value) is int and float in allowed)
    if not right:
        wanted = " or ".join(kind if isinstance(kind, str) else KINDS[kind] for kind in allowed)
        raise UserError(f"Option {key} of policy {policy} cannot be {text!r}; give {wanted}.")
    return key, value


def _value(text: str) -> bool | int | float | str | None:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
