"""BERT's WordPiece tokenizer, and texts or pairs of texts as batches of a fixed length."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from models.errors import UserError
from models.readers.json_object import read_object, read_text
from models.text.tokenizers import load_tokenizer

PAD, UNKNOWN, FIRST, SEPARATOR, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLASSES = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast")


def load_bert_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint folder: its tokenizer.json, else vocab.txt as its tokenizer_config.json asks.

    Names of special tokens in a text, such as ``[SEP]``, are read as such, unless the tokenizer's
    ``encode_special_tokens`` is set to True.

    Args:
        folder: of the checkpoint.
        vocab_size: of the model: `BertConfig.vocab_size`.

    Raises:
        UserError: if there is no tokenizer, a file is damaged or of another kind of tokenizer, or there are more tokens
            than the model has embeddings for.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(folder)
    elif (folder / "vocab.txt").is_file():
        tokenizer = _from_vocabulary(folder)
    else:
        raise UserError(
            f"{folder} holds no tokenizer: there is neither tokenizer.json nor vocab.txt; copy the tokenizer's files "
            "from where the checkpoint came from."
        )
    if lacking := [token for token in SPECIAL if tokenizer.token_to_id(token) is None]:
        raise UserError(f"The tokenizer in {folder} is not BERT's: it has no {', '.join(lacking)}; copy it again.")
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise UserError(
            f"The tokenizer in {folder} has ids up to {highest}, but the model has {vocab_size} embeddings; take the "
            "tokenizer that belongs to the model."
        )
    return tokenizer


def _from_vocabulary(folder: Path) -> Tokenizer:
    options = read_object(folder / "tokenizer_config.json")
    if (kind := options.get("tokenizer_class", CLASSES[0])) not in CLASSES:
        raise UserError(
            f"The tokenizer in {folder} is of the class {kind!r}, and from vocab.txt only {CLASSES[0]} can be built; "
            "add its tokenizer.json."
        )
    flags: dict[str, Any] = {
        "do_lower_case": options.get("do_lower_case"),
        "strip_accents": options.get("strip_accents"),
    }
    flags["tokenize_chinese_chars"] = options.get("tokenize_chinese_chars", True)
    for name, flag in flags.items():
        if type(flag) is not bool and (name, flag) != ("strip_accents", None):  # as the letters' case where it is null
            said = f"says {name} {flag!r}" if name in options else f"does not say {name}"
            raise UserError(f"{folder / 'tokenizer_config.json'} {said}; add it as true or false.")
    lines = read_text(folder / "vocab.txt").split("\n")
    vocabulary = {token: number for number, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    if lacking := [token for token in SPECIAL if token not in vocabulary]:
        raise UserError(f"{folder / 'vocab.txt'} has no {', '.join(lacking)}; copy it again.")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=flags["tokenize_chinese_chars"],
        strip_accents=flags["strip_accents"],
        lowercase=flags["do_lower_case"],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{FIRST}:0 $A:0 {SEPARATOR}:0",
        pair=f"{FIRST}:0 $A:0 {SEPARATOR}:0 $B:1 {SEPARATOR}:1",
        special_tokens=[(token, vocabulary[token]) for token in (FIRST, SEPARATOR)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


@dataclasses.dataclass(frozen=True)
class TextBatch:
    """Texts, or pairs, as a model takes them.

    Attributes:
        tokens: ids, padded with those of [PAD].
        mask: where there is a token.
        token_types: 1 in the second text and the [SEP] after it, else 0.
        offsets: first and after-last character of each token in its text; zeros for special tokens and padding.
        row: number of the text or pair that each row comes from.
    """

    tokens: Int[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T"]
    token_types: Int[np.ndarray, "B T"]
    offsets: Int[np.ndarray, "B T 2"]
    row: Int[np.ndarray, " B"]


Encode = Callable[..., TextBatch]


def make_encoder(tokenizer: Tokenizer, length: int, *, stride: int | None = None) -> Encode:
    """A function `encode(texts, seconds=None) -> TextBatch` of rows of exactly `length` tokens.

    Too long a text is cut at its end; of a pair the longer one is, until both fit. With a stride, which is for pairs of
    question and context, only second texts are cut, and what is cut off follows in further rows, each of which repeats
    the last `stride` tokens of the row before.

    Args:
        tokenizer: from `load_bert_tokenizer`; it is left as it is.
        length: tokens of a row, [CLS] and [SEP] included.
        stride: tokens that successive rows share.

    Raises:
        UserError: if the length leaves no room for a text; from the function, if there are not as many second texts as
            texts, or the stride leaves no room beside a first text.
    """
    if length < 4 or (stride is not None and stride < 0):
        raise UserError(
            f"A length of {length} with a stride of {stride} leaves no room for texts; take a length from 4."
        )
    whole, cutting = (Tokenizer.from_str(tokenizer.to_str()) for _ in range(2))
    whole.encode_special_tokens = cutting.encode_special_tokens = tokenizer.encode_special_tokens
    strategy = "longest_first" if stride is None else "only_second"
    cutting.enable_truncation(length, stride=stride or 0, strategy=strategy)
    cutting.enable_padding(length=length, pad_id=tokenizer.token_to_id(PAD), pad_token=PAD)

    def encode(texts: Sequence[str], seconds: Sequence[str] | None = None) -> TextBatch:
        if seconds is not None and len(seconds) != len(texts):
            raise UserError(f"There are {len(texts)} texts and {len(seconds)} second ones; give one for each.")
        if stride is not None:
            if seconds is None:
                raise UserError("A stride is for pairs of texts; give the second texts too.")
            _room(whole, texts, length, stride)
        pairs = list(texts) if seconds is None else list(zip(texts, seconds, strict=True))
        rows = [
            (number, row)
            for number, first in enumerate(cutting.encode_batch(pairs))
            for row in (first, *(first.overflowing if stride is not None else ()))
        ]
        return TextBatch(
            tokens=np.array([row.ids for _, row in rows], np.int32).reshape(-1, length),
            mask=np.array([row.attention_mask for _, row in rows], bool).reshape(-1, length),
            token_types=np.array([row.type_ids for _, row in rows], np.int32).reshape(-1, length),
            offsets=np.array([row.offsets for _, row in rows], np.int32).reshape(-1, length, 2),
            row=np.array([number for number, _ in rows], np.int32),
        )

    return encode


def _room(tokenizer: Tokenizer, texts: Sequence[str], length: int, stride: int) -> None:
    """Checks that beside each first text more than the stride fits."""
    for number, found in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        if (room := length - 3 - len(found.ids)) <= stride:
            raise UserError(
                f"Text {number} has {len(found.ids)} tokens, which leaves {max(room, 0)} of {length} for the second "
                f"text, not more than the stride of {stride}; shorten it, or take a greater length or a lesser stride."
            )
