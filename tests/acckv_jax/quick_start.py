"""Quick start: acckv_jax on a decoder of your own. Run as `python quick_start.py [POLICY [BUDGET]]`.

`foreign_llama.py` beside this file stands for your decoder: it calls `attend` where it would else compute attention.
"""

import functools
import sys

import jax
import numpy as np
from foreign_llama import Llama

import acckv_jax as kv


def answer(name: str, budget: float | int, steps: int = 16, tokens: int = 56) -> tuple[np.ndarray, kv.CacheBytes]:
    """Reads a random prompt, prunes its cache by a policy, decodes; returns the new tokens and the cache's bytes."""
    model = Llama()
    params = model.init(jax.random.key(0))
    modality = np.repeat([kv.Modality.TEXT, kv.Modality.VIDEO, kv.Modality.AUDIO, kv.Modality.TEXT], [4, 28, 20, 4])
    bucket = kv.bucket_length(tokens)  # few lengths are compiled
    modality = np.pad(modality, (0, bucket - tokens))[None]
    inputs = np.random.default_rng(0).integers(0, model.vocab, (1, bucket))
    prompt = kv.make_prompt(modality, np.array([tokens]))

    policy = kv.make_policy(name, budget=budget)
    policy.check(kv.count_tokens(prompt))  # a clear error if the text does not fit the budget

    read = jax.jit(kv.prefill, static_argnames=("step", "policy", "layers", "room"))
    logits, cache = read(model, params, inputs, prompt, policy, layers=model.layers, room=policy.decode_room(steps))
    size = kv.cache_bytes(cache)

    write = jax.jit(functools.partial(kv.decode, model, policy=policy, steps=steps - 1), donate_argnames="state")
    state = kv.start_decoding(logits, kv.check_finite(cache), jax.random.key(0))
    first = np.asarray(state.token)[:, None]
    rest, _, _ = write(params, state)  # `state` is donated: the loop updates its buffers in place
    return np.concatenate([first, rest], axis=1), size


if __name__ == "__main__":
    name, budget = (sys.argv[1:] + ["acckv", "0.4"][len(sys.argv) - 1 :])[:2]
    written, size = answer(name, float(budget) if "." in budget else int(budget))
    full = answer("full", 1.0)[1]
    print(f"{name} at {budget}: {size.prompt} of {full.prompt} cache bytes, room for decoding {size.room}")
    print(f"tokens: {written[0].tolist()}")
