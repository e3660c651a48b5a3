"""The tokenizer of a model that starts from nothing: the most frequent words of the texts it is trained on."""

import collections
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from models.bert.tokenizer import SPECIAL, load_bert_tokenizer
from models.errors import UserError

PREFIX = "##"


def build_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A WordPiece tokenizer (lower case) whose vocabulary is all characters of the texts and their most frequent words.

    Words that it lacks are read letter by letter. The same texts give the same tokenizer.

    Args:
        texts: of the training part.
        size: largest size of the vocabulary.

    Raises:
        UserError: if the size does not hold the characters.
    """
    words = collections.Counter(word for text in texts for word in _words(text))
    letters = sorted({letter for word in words for letter in word})
    pieces = [*SPECIAL, *letters, *(PREFIX + letter for letter in letters)]
    if len(pieces) > size:
        raise UserError(
            f"The texts have {len(letters)} different characters, too many for a vocabulary of {size}; take a text "
            "encoder with a larger one, or give --target.weights and --source.weights."
        )
    known = set(pieces)
    ranked = sorted(words, key=lambda word: (-words[word], word))
    pieces += [word for word in ranked if word not in known][: size - len(pieces)]
    with TemporaryDirectory() as folder:
        write_vocabulary(Path(folder), pieces)
        return load_bert_tokenizer(Path(folder), size)


def write_vocabulary(folder: Path, pieces: list[str]) -> None:
    """Writes vocab.txt and tokenizer_config.json, which `load_bert_tokenizer` and transformers read."""
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    config = {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")


def _words(text: str) -> Iterator[str]:
    clean = normalizers.BertNormalizer(lowercase=True).normalize_str(text)
    return (word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(clean))
