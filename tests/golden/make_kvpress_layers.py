"""Makes kvpress_pyramid_kv.npz, kvpress_expected_attention.npz and kvpress_kvzip.npz beside this file.

README.md says what they are. Run it in an environment of its own (versions in README.md):
`python -m tests.golden.make_kvpress_layers` in the repository's folder.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from kvpress import ExpectedAttentionPress, KVzipPress, PyramidKVPress
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache, PreTrainedTokenizerFast
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.golden.make_kvpress import VOCAB, build

HERE = Path(__file__).parent

# seed, family, (N, K, H), prompt length, compression ratio, window_size, kernel_size, beta; three layers
PYRAMID_CASES = [
    (20, "qwen2", (4, 2, 8), 128, 0.50, 8, 5, 4),
    (121, "llama", (2, 2, 8), 96, 0.25, 4, 3, 20),
]
# prompt length, compression ratio, window_size, beta, layers, for the budgets alone
PYRAMID_BUDGETS = [
    case
    for case in itertools.product((100, 333, 1000), (0.1, 0.5, 0.8, 0.9), (8, 32), (2, 20), (2, 30))
    if case[0] * (1 - case[1]) / case[3] >= case[2]  # else kvpress is SnapKV
]
# seed, family, (N, K, H), prompt length, compression ratio, future positions, sinks, covariance, value norms, epsilon
EXPECTED_CASES = [
    (130, "llama", (4, 2, 8), 64, 0.50, 512, 4, True, True, 0.0),
    (31, "qwen2", (6, 2, 8), 96, 0.75, 64, 2, True, True, 0.02),
    (32, "llama", (4, 4, 8), 77, 0.30, 128, 4, False, True, 0.0),
    (33, "qwen2", (3, 1, 8), 90, 0.60, 512, 0, True, False, 0.0),
]
# seed, family, (N, K, H), prompt length, compression ratio; two layers
KVZIP_CASES = [
    (40, "qwen2", (4, 2, 8), 48, 0.50),
    (41, "llama", (4, 2, 8), 64, 0.75),
]

Arrays = dict[str, np.ndarray]
captured: list[Arrays] = []


def capture_attention(module, query, key, value, attention_mask, **kwargs):
    """Records q [N, T, H], k and v [K, S, H] after RoPE, and q before it, of every layer and pass; attends as usual."""
    captured.append({"q": query[0], "k": key[0], "v": value[0], "unrotated_q": module.unrotated_q})
    captured[-1] = {name: x.detach().numpy().copy() for name, x in captured[-1].items()}
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def build_layers(family: str, shape: tuple[int, int, int], seed: int, layers: int) -> torch.nn.Module:
    """`build`, with several layers that keep their queries before RoPE."""
    model = build(family, shape, seed, layers)
    heads, _, size = shape
    for layer in model.model.layers:
        attention = layer.self_attn

        def keep(module, given, out, attention=attention):
            attention.unrotated_q = out[0].reshape(-1, heads, size).transpose(0, 1)

        attention.q_proj.register_forward_hook(keep)
    return model


def token_ids(length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


def kept_by(model: torch.nn.Module, length: int, press, seed: int) -> list[np.ndarray]:
    """[K, n_kept] sorted prompt indices that the press leaves in each layer's cache, found by matching keys exactly."""
    captured.clear()
    cache = DynamicCache()
    with torch.no_grad(), press(model):
        model(token_ids(length, seed), past_key_values=cache)
    found = []
    for layer, before in zip(cache.layers, captured, strict=True):
        kept = layer.keys[0].numpy()
        same = (kept[:, :, None] == before["k"][:, None]).all(-1)  # [K, n_kept, l]
        if not (same.sum(2) == 1).all():
            raise RuntimeError("a kept key matches no prompt key, or several")
        found.append(np.sort(same.argmax(2), axis=1).astype(np.int32))
    return found


def pyramid_kv() -> Arrays:
    made: Arrays = {}
    for number, (seed, family, shape, length, ratio, window, kernel, beta) in enumerate(PYRAMID_CASES):
        press = PyramidKVPress(compression_ratio=ratio, window_size=window, kernel_size=kernel, beta=beta)
        kept = kept_by(build_layers(family, shape, seed, 3), length, press, seed)
        made |= {f"{name}_{number}": np.stack([layer[name] for layer in captured]) for name in "qk"}
        made |= {f"kept_{number}_{layer}": slots for layer, slots in enumerate(kept)}
        made[f"options_{number}"] = np.array([1 - ratio, window, kernel, beta])
    rows = []
    for length, ratio, window, beta, layers in PYRAMID_BUDGETS:
        press = PyramidKVPress(compression_ratio=ratio, window_size=window, beta=beta)
        for layer in range(layers):
            module = SimpleNamespace(layer_idx=layer, config=SimpleNamespace(num_hidden_layers=layers))
            budget = press.get_layer_budget(module, length)
            rows.append([length, 1 - ratio, window, beta, layers, layer, budget])
    return made | {"budgets": np.array(rows)}


def expected_attention() -> Arrays:
    made: Arrays = {}
    for number, (seed, family, shape, length, ratio, *options) in enumerate(EXPECTED_CASES):
        future, sinks, covariance, norms, epsilon = options
        press = ExpectedAttentionPress(ratio, future, sinks, covariance, norms, epsilon)
        (kept,) = kept_by(build_layers(family, shape, seed, 1), length, press, seed)
        (layer,) = captured
        made |= {f"{name}_{number}": layer[name] for name in ("unrotated_q", "k", "v")}
        made |= {f"kept_{number}": kept, f"options_{number}": np.array(options, np.float64)}
    return made


class ScoresOfKVzip(KVzipPress):
    """Keeps its scores, which it forgets at the end."""

    scores: np.ndarray

    def compress_post(self, model):
        self.scores = self.score_val[:, 0].numpy().copy()


def kvzip() -> Arrays:
    made: Arrays = {}
    words = ["[UNK]", "Repeat", "the", "previous", "context", "exactly", ".", "\n", "\n\n"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
        for number, (seed, family, shape, length, ratio) in enumerate(KVZIP_CASES):
            model = build_layers(family, shape, seed, 2)
            model.config.name_or_path = folder
            press = ScoresOfKVzip(compression_ratio=ratio)
            captured.clear()
            with torch.no_grad(), press(model):
                model.model(input_ids=token_ids(length, seed), past_key_values=DynamicCache())
            first, again = captured[:2], captured[2:]
            for name in "qk":
                parts = [
                    np.concatenate([a[name], b[name] if name == "q" else b[name][:, length:]], axis=1)
                    for a, b in zip(first, again, strict=True)
                ]
                made[f"{name}_{number}"] = np.stack(parts)
            made |= {f"scores_{number}": press.scores, f"length_{number}": np.array(length)}
    return made


def main() -> None:
    ALL_ATTENTION_FUNCTIONS.register("capture", capture_attention)
    for name, make in {
        "pyramid_kv": pyramid_kv,
        "expected_attention": expected_attention,
        "kvzip": kvzip,
    }.items():
        np.savez_compressed(HERE / f"kvpress_{name}.npz", **make())


if __name__ == "__main__":
    main()
