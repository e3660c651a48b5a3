"""Tokenizers of checkpoint folders against transformers, on the real Qwen2.5 vocabulary."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, Qwen2Tokenizer

from models.errors import UserError
from models.text.tokenizers import load_tokenizer
from tests.models.qwen2_5_omni.vocabulary import write_tokenizer
from tests.tiers import quick_first

FORMS = ("tokenizer.json", "vocab.json", "added_tokens.json")
TEXTS = (
    "What is on screen while the trumpet plays?",
    "In 1987 it's 3.14  times\n\n\tbetter, ISN'T it?  A1b2\r\n",
    "nai\u0308ve cafe\u0301, Привет, 日本語の文 🎺🎻 \u00a0 ﷺ ½ Ⅷ ١٢٣",
    "def f(x):\n    return x ** 2  # comment\n\n\n",
    "<|im_start|>user\n<|vision_bos|><|VIDEO|><|vision_eos|>Hi<|im_end|>\n<|im_start|>assistant\n",
    "<tool_call>{}</tool_call> <|im_start <|endoftext|>",
    " ",
    "",
)
LETTERS = "aZé\u0301 \u3000\n\r\t0९'’.,!?<|>_-日あ🎺한ßΩ\u200d\ufeff"
PIECES = [*LETTERS, "'s", "'LL", " the", "ing", "<|im_start|>", "<|AUDIO|>", "<tool_call>"]


@pytest.fixture(scope="module", params=quick_first(FORMS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path, form=request.param)
    return path


def random_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(PIECES, rng.integers(1, 40))) for _ in range(count)]


def test_ids_equal_transformers(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(theirs, Qwen2Tokenizer)
    assert ours.get_vocab_size() == len(theirs) == 151665
    for text in (*TEXTS, *random_texts(500)):
        ids = ours.encode(text).ids
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    ours.encode_special_tokens = True
    for text in (*TEXTS, *random_texts(100)):
        ids = ours.encode(text).ids
        assert ids == theirs(text, split_special_tokens=True)["input_ids"], text
        assert not {*range(151643, 151657)} & set(ids), text


def small_folder(path: Path, *, tokenizer_json: bool = False) -> Path:
    """A tokenizer of three letters and one merge."""
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3}
    added = {"content": "<|im_end|>", "special": True, "normalized": False}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("a b\n")
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"4": added}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if tokenizer_json:
        tokenizer = load_tokenizer(path)
        tokenizer.enable_truncation(2)
        tokenizer.enable_padding(length=9)
        tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_prompts_are_neither_cut_nor_padded(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, tokenizer_json=True)
    assert load_tokenizer(folder).encode("abcab<|im_end|>").ids == [3, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("vocab.json", None, "neither tokenizer.json nor vocab.json;"),
        ("merges.txt", None, "neither tokenizer.json nor merges.txt;"),
        ("tokenizer_config.json", None, r"tokenizer_config\.json cannot be read \(No such file"),
        ("tokenizer.json", b'{"model": {"vocab"', r"tokenizer\.json is not readable JSON"),
        ("tokenizer.json", b'{"model": {"vocab": {}}}', r"tokenizer\.json is not a readable tokenizer"),
        (
            "tokenizer.json",
            b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}}',
            r"tokenizer\.json is not a readable tokenizer",
        ),
        ("tokenizer.json", b"[" * 100_000, r"tokenizer\.json is not readable JSON"),
        ("tokenizer.json", b"{}", r"tokenizer\.json describes no tokenizer"),
        ("tokenizer.json", b"\xff\xfe", r"tokenizer\.json is not UTF-8"),
        ("vocab.json", b"[1]", r"vocab\.json must hold a JSON object, not a list"),
        ("vocab.json", b'{"a": "b"}', r"vocab\.json gives 'a' an id that is no integer \('b'\)"),
        (
            "merges.txt",
            b"#version: 0.2\na b\nb c\n",
            r"Line 3 of .*merges\.txt is no pair of tokens of vocab\.json: 'b c'",
        ),
        ("tokenizer_config.json", b'{"tokenizer_class": "LlamaTokenizer"}', "'LlamaTokenizer'.*only Qwen2Tokenizer"),
        ("tokenizer_config.json", b'{"tokenizer_class": "Qwen2Tokenizer"}', r"added_tokens\.json cannot be read"),
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"7": {"content": "<x>"}}}',
            "'<x>' should have the id 7 but follows vocab.json as 4",
        ),
    ],
)
def test_damaged_folders(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    folder = small_folder(tmp_path)
    assert load_tokenizer(folder).encode("abc<|im_end|>").ids == [3, 2, 4]
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(folder)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)
