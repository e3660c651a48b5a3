"""Greedy decoding by exported programs: python run_exported.py FOLDER PROMPT.safetensors [PLATFORM]."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors.flax import load_file

folder, prompt, platform = Path(sys.argv[1]), sys.argv[2], *(sys.argv[3:] or ["cpu"])
manifest = json.loads((folder / "manifest.json").read_text())
programs, arrays = manifest["programs"], load_file(folder / "weights.safetensors") | load_file(prompt)
calls = {name: export.deserialize((folder / p["files"][platform]).read_bytes()).call for name, p in programs.items()}
jitted = {name: jax.jit(call) for name, call in calls.items()}


def run(name):
    """Takes a program's inputs from `arrays`, and puts its outputs there."""
    found = jitted[name](*(arrays[one["name"]] for one in programs[name]["inputs"]))
    arrays.update({one["name"]: x for one, x in zip(programs[name]["outputs"], found, strict=True)})


run("prefill")
run("prune")
arrays["token"] = jnp.argmax(arrays["logits"], -1).astype(jnp.int32)
arrays["active"] = ~jnp.isin(arrays["token"], jnp.array(manifest["stop_token_ids"], jnp.int32))
tokens = np.asarray(arrays["token"])[:, None]
while tokens.shape[1] < manifest["new_tokens"] and np.any(arrays["active"]):
    run("decode")
    tokens = np.concatenate([tokens, np.asarray(arrays["tokens"])[:, : int(arrays["number"])]], 1)
print(json.dumps(tokens[:, : manifest["new_tokens"]].tolist()))
