"""Tokenizers, built from what a checkpoint holds."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from models.errors import UserError
from models.readers.gguf import read_gguf_metadata
from models.weights import fetch

CONTROL = 3  # GGUF's token type for special tokens
PRE_TOKENIZERS = {
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
}


def load_smollm2_tokenizer() -> Tokenizer:
    """SmolLM2's tokenizer: byte-level BPE over 49,152 tokens, digits one by one.

    Special tokens such as ``<|im_start|>`` in a text are read as such; for text that users type, set the tokenizer's
    ``encode_special_tokens`` to True first, and they are read as plain characters.

    Raises:
        UserError: if the checkpoint cannot be fetched or read.
    """
    return gguf_tokenizer(read_gguf_metadata(fetch("smollm2")))


def gguf_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE tokenizer that GGUF metadata describes.

    Raises:
        UserError: if the metadata describes another kind of tokenizer.
    """
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in PRE_TOKENIZERS:
        raise UserError(
            f"The GGUF file's tokenizer is {kind!r} with the splitting rule {split!r}; only 'gpt2' with one of "
            f"{sorted(PRE_TOKENIZERS)} is supported, so use a file of that kind."
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[split]())
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token, k in zip(tokens, kinds, strict=True) if k == CONTROL]
    )
    return tokenizer
