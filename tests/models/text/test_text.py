"""SmolLM2's tokenizer against byte-pair encoding written out in plain Python."""

import re

import pytest
from tokenizers import Tokenizer

from models.errors import UserError
from models.hub.weights import fetch
from models.readers.gguf import read_gguf_metadata
from models.text.tokenizers import gguf_tokenizer, load_smollm2_tokenizer

TEXTS = (
    "What is on screen while the trumpet plays?",
    "In 1987 it's 3.14  times\n\n\tbetter, isn't it? A1b2",
    "naïve café, Привет, 日本語 🎺 \u00a0",
    " leading and trailing ",
    "",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_smollm2_tokenizer()


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}


def encode(text: str, ranks: dict[tuple[str, str], int], vocabulary: dict[str, int]) -> list[int]:
    letters, ids = byte_letters(), []
    word = r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?[^\s\w]+| ?_+|\s+(?!\S)|\s+"
    for run in re.split(r"(\d)", text):
        for piece in [run] if run.isdigit() else re.findall(word, run):
            parts = [letters[b] for b in piece.encode()]
            while len(parts) > 1:
                rank, at = min(
                    (ranks.get(pair, 10**9), i) for i, pair in enumerate(zip(parts, parts[1:], strict=False))
                )
                if rank == 10**9:
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            ids += [vocabulary[part] for part in parts]
    return ids


def test_ids_equal_plain_byte_pair_encoding(tokenizer: Tokenizer) -> None:
    metadata = read_gguf_metadata(fetch("smollm2"))
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert ids == encode(text, ranks, vocabulary), text
        assert tokenizer.decode(ids) == text


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 49152
    assert [tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert tokenizer.encode("<|im_start|>user").tokens == ["<|im_start|>", "user"]
    tokenizer.encode_special_tokens = True
    assert 1 not in tokenizer.encode("<|im_start|>user").ids
    tokenizer.encode_special_tokens = False


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("1987").tokens == ["1", "9", "8", "7"]


def test_unknown_tokenizer() -> None:
    with pytest.raises(UserError, match="'llama' with the splitting rule None; only 'gpt2'"):
        gguf_tokenizer({"tokenizer.ggml.model": "llama"})
