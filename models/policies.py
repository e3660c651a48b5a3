"""Policies and budgets from what a user typed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import acckv_jax
from acckv_jax import WRAPPERS, CachePolicy
from models.errors import UserError

WORDS = {"true": True, "false": False, "none": None, "null": None}
KINDS = {bool: "true or false", int: "a whole number", float: "a number", type(None): "none"}
ONE_PASS = tuple(name for name, make in acckv_jax.POLICIES.items() if not make().second_pass)
"""Policies that prune a prompt while it is read."""


def build_policy(name: str, budget: float | int, options: Sequence[str] = (), **defaults: Any) -> CachePolicy:
    """A policy as typed.

    Args:
        name: a key of `acckv_jax.POLICIES`, or one inside wrappers, such as "protected(snapkv)".
        budget: fraction of the prompt (float) or number of slots (int).
        options: NAME=VALUE pairs, each of the outermost wrapper that has the option, or else of the policy; of several
            with one name the last counts.
        **defaults: options such as `tau`, each set if the policy has it and the user gave none.

    Raises:
        UserError: on an unknown name, option or value.
    """
    try:
        types = _option_types(name)
        given = dict(_parsed(name, option, types) for option in options)
        fitting = {key: value for key, value in defaults.items() if key in types}
        return acckv_jax.make_policy(name, budget=budget, **(fitting | given))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{error}") from error


def check_one_pass(policies: Mapping[str, CachePolicy]) -> None:
    """Checks policies for a program that reads every prompt once.

    Raises:
        UserError: naming one that reads it twice.
    """
    for name, policy in policies.items():
        if policy.second_pass:
            raise UserError(
                f"Policy {name} reads every prompt twice, which this program does not do: choose another policy, or "
                "ask with eval.answer or eval.benchmark."
            )


def parse_budget(text: str) -> float | int:
    """A budget as typed.

    Raises:
        UserError: if it is neither a decimal fraction nor an integer.
    """
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError as error:
        raise UserError(
            f"Budget {text!r} is no number; give a fraction such as 0.2, or a number of slots such as 512."
        ) from error


def _option_types(name: str) -> dict[str, Any]:
    """The annotations of all options of a policy and the wrappers around it.

    Raises:
        ValueError: on an unknown name.
    """
    outer, bracket, rest = name.partition("(")
    wrapped = bracket and outer in WRAPPERS and rest.endswith(")")
    inner = _option_types(rest[:-1]) if wrapped else {}
    kind = WRAPPERS[outer] if wrapped else type(acckv_jax.make_policy(name))
    hints = get_type_hints(kind)
    own = [field.name for field in dataclasses.fields(kind) if field.init and field.name not in ("budget", "inner")]
    return {key: hints[key] for key in own} | {key: value for key, value in inner.items() if key not in own}


def _parsed(policy: str, option: str, types: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and value of a NAME=VALUE pair; the value's type is that of the policy's option."""
    key, equals, text = (part.strip() for part in option.partition("="))
    if not equals:
        raise UserError(f"Option {option!r} has no value; write NAME=VALUE.")
    if key not in types:
        raise UserError(f"Policy {policy} has no option {key!r}; choose one of {', '.join(types)}.")
    bare = text.strip("\"'")
    several = get_origin(types[key]) is tuple
    kind = get_args(types[key])[0] if several else types[key]
    if get_origin(kind) is Literal:
        allowed, values = get_args(kind), [bare]
        right = bare in allowed
    else:
        allowed = get_args(kind) or (kind,)
        values = [_value(part.strip()) for part in bare.split(",")] if several else [_value(bare)]
        right = all(type(value) in allowed or (type(value) is int and float in allowed) for value in values)
    if not right:
        wanted = " or ".join(kind if isinstance(kind, str) else KINDS[kind] for kind in allowed)
        every = ", or several with commas between them" if several else ""
        raise UserError(f"Option {key} of policy {policy} cannot be {text!r}; give {wanted}{every}.")
    return key, tuple(values) if several else values[0]


def _value(text: str) -> bool | int | float | str | None:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
