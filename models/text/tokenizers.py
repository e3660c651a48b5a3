"""Tokenizers, built from what a checkpoint holds."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from models.errors import UserError
from models.hub.weights import fetch
from models.readers.gguf import read_gguf_metadata
from models.readers.json_object import parse_object, read_object, read_text

CONTROL = 3  # GGUF's token type for special tokens
PRE_TOKENIZERS = {
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
}
QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
QWEN2_SPLIT = (  # contractions; words with what precedes them; single digits; punctuation; line ends; other spaces
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder: its tokenizer.json, else vocab.json and merges.txt of a Qwen2 tokenizer.

    Special tokens are read and hidden as `load_smollm2_tokenizer` says. Words that a vocabulary adds without calling
    them special, such as ``<tool_call>``, stay single tokens in what users type too, as in transformers.

    Raises:
        UserError: if there is no tokenizer, or a file is damaged or of another kind of tokenizer.
    """
    if (file := folder / "tokenizer.json").is_file():
        return read_tokenizer(file)
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} holds no tokenizer: there is neither tokenizer.json nor {' and '.join(missing)}; "
            "copy the tokenizer's files from where the checkpoint came from."
        )
    return _qwen2_tokenizer(folder)


def read_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer.json, without the truncation and padding that it may ask for.

    Raises:
        UserError: if the file is damaged.
    """
    text = read_text(file)
    model = parse_object(file, text).get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise UserError(f"{file} describes no tokenizer (it has no model.vocab); copy it again.")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower type, and nothing else runs here
        raise UserError(f"{file} is not a readable tokenizer ({error}); copy it again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _qwen2_tokenizer(folder: Path) -> Tokenizer:
    options, vocabulary = read_object(folder / "tokenizer_config.json"), read_object(folder / "vocab.json")
    if (kind := options.get("tokenizer_class")) not in QWEN2_CLASSES:
        raise UserError(
            f"The tokenizer in {folder} is of the class {kind!r}, and from vocab.json and merges.txt only "
            f"{QWEN2_CLASSES[0]} can be built; add its tokenizer.json."
        )
    if wrong := [token for token, number in vocabulary.items() if type(number) is not int]:
        number = vocabulary[wrong[0]]
        raise UserError(
            f"{folder / 'vocab.json'} gives {wrong[0]!r} an id that is no integer ({number!r}); copy it again."
        )
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_read_merges(folder / "merges.txt", vocabulary)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = _added_tokens(folder, options)
    tokenizer.add_tokens([added[number] for number in sorted(added)])
    for number, token in added.items():
        if (found := tokenizer.token_to_id(token.content)) != number:
            raise UserError(
                f"In {folder} the added token {token.content!r} should have the id {number} but follows vocab.json "
                f"as {found}; copy the tokenizer's files again, all from one place."
            )
    return tokenizer


def _added_tokens(folder: Path, options: dict[str, Any]) -> dict[int, AddedToken]:
    """By id, from tokenizer_config.json, or where that is older from added_tokens.json."""
    if "added_tokens_decoder" in options:
        return {int(number): AddedToken(**token) for number, token in options["added_tokens_decoder"].items()}
    names = [options.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")]
    names += options.get("additional_special_tokens", [])
    special = {name["content"] if isinstance(name, dict) else name for name in names}
    return {
        number: AddedToken(token, normalized=False, special=token in special)
        for token, number in read_object(folder / "added_tokens.json").items()
    }


def _read_merges(file: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    lines = read_text(file).split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        first, _, second = line.rstrip("\r").partition(" ")
        if any(token not in vocabulary for token in (first, second, first + second)):
            raise UserError(
                f"Line {number} of {file} is no pair of tokens of vocab.json: {line!r}; copy both files again."
            )
        merges.append((first, second))
    return merges
