"""Quick start: acckv_jax on a decoder of your own. Run as `python quick_start.py [POLICY [BUDGET]]`.

`foreign_llama.py` beside this file stands for your decoder: it calls `attend` where it would else compute attention.
"""

import sys

import jax
import numpy as np
from foreign_llama import Llama

import acckv_jax as kv


def answer(policy: kv.CachePolicy, new_tokens: int = 16) -> kv.Generation:
    """Reads a random prompt, prunes its cache by a policy, and decodes."""
    model = Llama()
    params = model.init(jax.random.key(0))
    inputs = np.random.default_rng(0).integers(0, model.vocab, (1, 56))
    modality = np.repeat([kv.Modality.TEXT, kv.Modality.VIDEO, kv.Modality.AUDIO, kv.Modality.TEXT], [4, 28, 20, 4])
    decoder = kv.Decoder(model, num_layers=model.layers)
    prompt = kv.make_prompt(modality[None])
    return kv.generate(decoder, params, inputs, prompt, policy, max_new_tokens=new_tokens)


if __name__ == "__main__":
    name, budget = (sys.argv[1:] + ["acckv", "0.4"][len(sys.argv) - 1 :])[:2]
    found = answer(kv.make_policy(name, budget=float(budget) if "." in budget else int(budget)))
    full = answer(kv.Full())
    size = found.cache_bytes
    print(f"{name} at {budget}: {size.prompt} of {full.cache_bytes.prompt} cache bytes, {size.reserved} for new tokens")
    print(f"tokens: {found.tokens[0].tolist()}")
