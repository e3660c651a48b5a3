"""Makes kvpress_wrappers.npz beside this file; README.md says what it is.

Run it in the environment of make_kvpress.py, at the repository's root: `python -m tests.golden.make_kvpress_wrappers`.
"""

from __future__ import annotations

import numpy as np
import torch
from kvpress import AdaKVPress, CriticalAdaKVPress, CriticalKVPress, KnormPress, SnapKVPress
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.golden.make_kvpress import HERE, VOCAB, build

WINDOW, KERNEL = 8, 5
# name, seed, family, (N, K, H), prompt length, compression ratio
CASES = [
    ("ada_kv(snapkv)", 0, "qwen2", (4, 2, 16), 64, 0.5),
    ("ada_kv(snapkv)", 1, "llama", (6, 3, 8), 101, 0.7),
    ("ada_kv(snapkv)", 2, "qwen2", (4, 4, 8), 96, 0.75),
    ("ada_kv(knorm)", 3, "llama", (4, 2, 16), 77, 0.5),
    ("ada_kv(knorm)", 4, "qwen2", (6, 3, 8), 64, 0.6),
    ("critical_kv(snapkv)", 5, "llama", (4, 2, 16), 64, 0.5),
    ("critical_kv(snapkv)", 6, "llama", (6, 2, 8), 101, 0.7),
    ("critical_kv(ada_kv(snapkv))", 7, "llama", (4, 2, 16), 64, 0.5),
    ("critical_kv(ada_kv(snapkv))", 8, "llama", (6, 3, 8), 101, 0.6),
]


def press_of(name: str, ratio: float):
    """The press that a wrapper's text names."""
    snapkv = SnapKVPress(compression_ratio=ratio, window_size=WINDOW, kernel_size=KERNEL)
    return {
        "ada_kv(snapkv)": lambda: AdaKVPress(snapkv),
        "ada_kv(knorm)": lambda: AdaKVPress(KnormPress(compression_ratio=ratio)),
        "critical_kv(snapkv)": lambda: CriticalKVPress(snapkv),
        "critical_kv(ada_kv(snapkv))": lambda: CriticalAdaKVPress(snapkv),
    }[name]()


captured: dict[str, np.ndarray] = {}


def capture_attention(module, query, key, value, attention_mask, **kwargs):
    """Record q [N, l, H], k and v [K, l, H] after RoPE, then attend as usual."""
    captured.update({name: x[0].detach().numpy().copy() for name, x in (("q", query), ("k", key), ("v", value))})
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def kept_mask(model: torch.nn.Module, press, ids: torch.Tensor) -> np.ndarray:
    """[K, l] which prompt tokens the press leaves in the cache: unmasked ones, or those found by matching keys."""
    cache = DynamicCache()
    with torch.no_grad(), press(model):
        model(ids, past_key_values=cache)
    kept = cache.layers[0].keys[0].numpy()  # [K, n, H]
    masked = getattr(model.model.layers[0].self_attn, "masked_key_indices", None)
    if masked is not None:
        mask = np.ones(kept.shape[:2], bool)
        mask[masked[1].numpy(), masked[2].numpy()] = False
        return mask
    same = (kept[:, :, None] == captured["k"][:, None]).all(-1)  # [K, n, l]
    if not (same.sum(-1) == 1).all():
        raise RuntimeError("a kept key matches no prompt key, or several")
    return same.any(1)


def main() -> None:
    """Runs all cases."""
    ALL_ATTENTION_FUNCTIONS.register("capture", capture_attention)
    found: dict[str, np.ndarray] = {"names": np.array([name for name, *_ in CASES])}
    for number, (name, seed, family, shape, length, ratio) in enumerate(CASES):
        model = build(family, shape, seed)
        ids = torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))
        kept = kept_mask(model, press_of(name, ratio), ids)
        weight = model.model.layers[0].self_attn.o_proj.weight.detach().numpy()  # [D, N * H]
        w_o = weight.T.reshape(shape[0], shape[2], -1)
        own = {"kept": kept, "budget": np.int32(int(length * (1 - ratio))), "w_o": w_o, **captured}
        found |= {f"{key}_{number}": value for key, value in own.items()}
    np.savez_compressed(HERE / "kvpress_wrappers.npz", **found)


if __name__ == "__main__":
    main()
