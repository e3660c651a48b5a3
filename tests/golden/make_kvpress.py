"""Makes kvpress_*.npz beside this file; README.md says what they are.

Run it in an environment of its own (versions in README.md), from any folder: `python tests/golden/make_kvpress.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from kvpress import KeyDiffPress, SnapKVPress, StreamingLLMPress, TOVAPress
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

HERE = Path(__file__).parent
VOCAB = 256

# seed, family, (N, K, H), prompt length, compression ratio, window_size, kernel_size
SNAPKV_CASES = [
    (0, "qwen2", (4, 2, 16), 64, 0.50, 8, 5),
    (101, "qwen2", (4, 2, 16), 96, 0.75, 16, 5),
    (2, "llama", (6, 2, 16), 128, 0.80, 16, 7),
    (3, "llama", (4, 4, 16), 77, 0.30, 8, 3),
    (4, "qwen2", (8, 2, 8), 200, 0.50, 64, 5),
    (5, "qwen2", (3, 1, 16), 151, 0.90, 8, 7),
    (6, "llama", (4, 2, 16), 133, 0.60, 32, 1),
    (107, "qwen2", (4, 2, 16), 96, 0.70, 1, 5),
]
# seed, family, (N, K, H), prompt length, compression ratio, n_sink
STREAMING_CASES = [
    (10, "qwen2", (4, 2, 16), 64, 0.50, 4),
    (11, "qwen2", (4, 2, 16), 96, 0.80, 4),
    (12, "llama", (6, 2, 16), 129, 0.75, 1),
    (13, "llama", (4, 4, 16), 77, 0.30, 8),
    (14, "qwen2", (8, 2, 8), 200, 0.90, 0),
    (15, "llama", (3, 1, 16), 151, 0.65, 2),
]
# seed, family, (N, K, H), prompt length, compression ratio
KEYDIFF_CASES = [
    (20, "qwen2", (4, 2, 16), 64, 0.50),
    (21, "qwen2", (4, 2, 16), 96, 0.80),
    (22, "llama", (6, 2, 16), 128, 0.75),
    (23, "llama", (4, 4, 16), 77, 0.30),
    (24, "qwen2", (8, 2, 8), 200, 0.90),
    (25, "llama", (3, 1, 16), 151, 0.65),
]
TOVA_CASES = [
    (30, "qwen2", (4, 2, 16), 64, 0.50),
    (31, "qwen2", (4, 2, 16), 96, 0.80),
    (32, "llama", (6, 2, 16), 128, 0.75),
    (33, "llama", (4, 4, 16), 77, 0.30),
    (34, "qwen2", (8, 2, 8), 200, 0.90),
    (35, "llama", (3, 1, 16), 151, 0.65),
]

captured: dict[str, np.ndarray] = {}


def capture_attention(module, query, key, value, attention_mask, **kwargs):
    """Record q [N, l, H] and k [K, l, H] after RoPE, then attend as usual."""
    captured["q"] = query[0].detach().numpy().copy()
    captured["k"] = key[0].detach().numpy().copy()
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def build(family: str, shape: tuple[int, int, int], seed: int, layers: int = 1) -> torch.nn.Module:
    """A model of one or several layers, with weights larger than usual so that attention is far from uniform."""
    heads, kv_heads, dim = shape
    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=heads * dim,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        initializer_range=0.25,
    )
    model = model_class(config).eval()
    model.set_attn_implementation("capture")
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.bias", "k_proj.bias")):
            torch.nn.init.normal_(parameter)
    return model


def kept_indices(model: torch.nn.Module, length: int, press, seed: int) -> np.ndarray:
    """[K, n_kept] sorted prompt indices that the press leaves in the cache, found by matching keys exactly."""
    ids = torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))
    cache = DynamicCache()
    with torch.no_grad(), press(model):
        model(ids, past_key_values=cache)
    kept = cache.layers[0].keys[0].numpy()
    rows = []
    for head in range(kept.shape[0]):
        same = (kept[head][:, None] == captured["k"][head][None]).all(axis=-1)  # [n_kept, l]
        if not (same.sum(axis=1) == 1).all():
            raise RuntimeError("a kept key matches no prompt key, or several")
        rows.append(np.sort(same.argmax(axis=1)))
    return np.stack(rows).astype(np.int32)


def main() -> None:
    ALL_ATTENTION_FUNCTIONS.register("capture", capture_attention)
    snapkv: dict[str, np.ndarray] = {}
    for number, (seed, family, shape, length, ratio, window, kernel) in enumerate(SNAPKV_CASES):
        press = SnapKVPress(compression_ratio=ratio, window_size=window, kernel_size=kernel)
        kept = kept_indices(build(family, shape, seed), length, press, seed)
        snapkv |= {
            f"q_{number}": captured["q"],
            f"k_{number}": captured["k"],
            f"kept_{number}": kept,
            f"window_kernel_{number}": np.array([window, kernel], dtype=np.int32),
        }
    streaming: dict[str, np.ndarray] = {}
    for number, (seed, family, shape, length, ratio, sinks) in enumerate(STREAMING_CASES):
        press = StreamingLLMPress(compression_ratio=ratio, n_sink=sinks)
        kept = kept_indices(build(family, shape, seed), length, press, seed)
        streaming |= {f"kept_{number}": kept, f"length_sinks_{number}": np.array([length, sinks], dtype=np.int32)}
    keydiff: dict[str, np.ndarray] = {}
    for number, (seed, family, shape, length, ratio) in enumerate(KEYDIFF_CASES):
        kept = kept_indices(build(family, shape, seed), length, KeyDiffPress(compression_ratio=ratio), seed)
        keydiff |= {f"k_{number}": captured["k"], f"kept_{number}": kept}
    tova: dict[str, np.ndarray] = {}
    for number, (seed, family, shape, length, ratio) in enumerate(TOVA_CASES):
        kept = kept_indices(build(family, shape, seed), length, TOVAPress(compression_ratio=ratio), seed)
        tova |= {f"q_{number}": captured["q"], f"k_{number}": captured["k"], f"kept_{number}": kept}
    np.savez_compressed(HERE / "kvpress_snapkv.npz", **snapkv)
    np.savez_compressed(HERE / "kvpress_streaming_llm.npz", **streaming)
    np.savez_compressed(HERE / "kvpress_keydiff.npz", **keydiff)
    np.savez_compressed(HERE / "kvpress_tova.npz", **tova)


if __name__ == "__main__":
    main()
