"""`python -m tests.eval.asks_every_policy MODEL CLIP`: the tokens of an answer under every policy, as JSON."""

import dataclasses
import json
import sys

import tyro

import models
from acckv_jax import POLICIES
from models import command
from models.devices import Devices, OnDevices
from models.policies import build_policy


@dataclasses.dataclass(frozen=True)
class Options:
    model: tyro.conf.Positional[str]
    clip: tyro.conf.Positional[str]
    policies: tuple[str, ...] = tuple(POLICIES)
    devices: OnDevices = Devices()


def run(options: Options) -> None:
    with options.devices.placed(models.kv_heads(options.model), options.model):
        model = models.load(options.model)
        clip = models.encode(model, options.clip)
        tokens = {}
        for name in options.policies:
            policy = build_policy(name, 1.0 if name == "full" else 0.5, filter_layer=1)  # tiny models have two layers
            first = models.answer(model, clip, "What is shown?", policy=policy, max_new_tokens=8)
            second = models.answer(model, clip, "And then?", max_new_tokens=4, follow_up=first)
            tokens[name] = [first.token_ids, second.token_ids]
    print(json.dumps(tokens))


if __name__ == "__main__":
    options = tyro.cli(Options)
    sys.exit(command.run(lambda: run(options), devices=options.devices))
