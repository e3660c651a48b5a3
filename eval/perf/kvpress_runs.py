"""A decoder in transformers whose cache kvpress prunes: the other side of `eval.perf.beside_kvpress`.

Imports torch and transformers, which that command alone needs.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from transformers import DynamicCache, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from models.decoder import DecoderConfig
from models.hf.decoder import decoder_tensors, llama_section
from models.hf.export import save_params
from models.layers.init import Params


def use_one_thread() -> None:
    """Lets torch use one thread, from now on."""
    torch.set_num_threads(1)


def llama(config: DecoderConfig, params: Params) -> Any:
    """The same parameters in transformers, by way of a checkpoint; float32, scaled_dot_product_attention."""
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "llama"
        save_params(checkpoint, params, decoder_tensors(config), llama_section(config, "float32"))
        model = LlamaForCausalLM.from_pretrained(checkpoint, attn_implementation="sdpa", dtype=torch.float32)
    return model.eval()


class PressedRun:
    """A prompt under a press, and an answer to it (`eval.perf.beside_kvpress.Run`).

    Attributes:
        model: of transformers.
        press: of kvpress; None keeps everything.
        prompt: [1, T] token ids.
        last: [1, 1] the token that is held back.
        new_tokens: tokens of the answer.
        layers: the arguments of `press.compress`, by layer.
    """

    def __init__(self, model: Any, ids: Int[np.ndarray, " T+1"], press: Any, new_tokens: int) -> None:
        self.model, self.press, self.new_tokens = model, press, new_tokens
        self.prompt, self.last = torch.tensor(ids[None, :-1]).long(), torch.tensor(ids[None, -1:]).long()
        self.layers: list[tuple[Any, ...]] = []
        if press is not None:
            compress = press.compress

            def recording(*arguments: Any) -> Any:
                self.layers.append(arguments)
                return compress(*arguments)

            press.compress = recording
            self.prefill()
            press.compress = compress

    @torch.inference_mode()
    def prefill(self) -> DynamicCache:
        """The pruned cache."""
        cache = DynamicCache()
        with contextlib.nullcontext() if self.press is None else self.press(self.model):
            self.model(self.prompt, past_key_values=cache, logits_to_keep=1)
        return cache

    @torch.inference_mode()
    def compress(self) -> None:
        """What the press does in the prefill, once more."""
        for arguments in self.layers:
            self.press.compress(*arguments)

    @torch.inference_mode()
    def start(self, cache: Any) -> tuple[DynamicCache]:
        """A copy of the cache, which `decode` appends to."""
        own = DynamicCache()
        for number, layer in enumerate(cache.layers):
            own.update(layer.keys.clone(), layer.values.clone(), number)
        return (own,)

    @torch.inference_mode()
    def decode(self, cache: Any) -> list[int]:
        """The answer, greedily; positions follow the prompt's uncompressed length."""
        token, answer = self.last, []
        for position in range(self.prompt.shape[1], self.prompt.shape[1] + self.new_tokens):
            at = torch.tensor([[position]])
            token = self.model(token, past_key_values=cache, position_ids=at).logits[:, -1].argmax(-1, keepdim=True)
            answer.append(int(token))
        return answer

    def kept(self, cache: Any) -> Bool[np.ndarray, "L K T"]:
        """Which tokens the cache holds: the cached keys are found among all keys, bit by bit."""
        kept = []
        for number, layer in enumerate(cache.layers):
            keys = layer.keys[0].numpy()
            found = np.ones((len(keys), self.prompt.shape[1]), bool)
            if self.layers:
                module, _, every, *_ = self.layers[number]
                found = np.stack([_found(*pair) for pair in zip(keys, every[0].numpy(), strict=True)])
                if (masked := getattr(module, "masked_key_indices", None)) is not None:  # a head's own budget
                    found[masked[1].numpy(), masked[2].numpy()] = False
            kept.append(found)
        return np.stack(kept)

    def cache_bytes(self, cache: Any) -> int:
        """Bytes of keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _found(keys: np.ndarray, every: np.ndarray) -> Bool[np.ndarray, " T"]:
    index = {key.tobytes(): at for at, key in enumerate(every)}
    found = np.zeros(len(every), bool)
    found[[index[key.tobytes()] for key in keys]] = True
    return found
