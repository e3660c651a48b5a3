"""WordPiece against transformers, on a small vocabulary made here."""

import json
import string

import numpy as np
import pytest
from transformers import BertTokenizer

from models.bert.tokenizer import SPECIAL, load_bert_tokenizer, make_encoder
from models.errors import UserError

WORDS = (
    "the",
    "The",
    "play",
    "cafe",
    "café",
    "naive",
    "trumpet",
    "1987",
    "don",
    "über",
    "uber",
    "日",
    "本",
    "한국",
    "im",
)
LETTERS = [*string.ascii_letters, *string.digits, *"éïüñ", *".,!?'-[]()#$"]
VOCABULARY = [*SPECIAL, *LETTERS, *WORDS, "##ing", "##s", "##er", "##é", *(f"##{letter}" for letter in LETTERS[:62])]
PIECES = [
    "play",
    "ing",
    "ers",
    "The",
    "THE",
    " the ",
    "café",
    "cafe\u0301",
    "naïve",
    "Über",
    "1987",
    " ",
    "\n\t",
    "\u00a0",
]
PIECES += [
    "日本語",
    "한국",
    "[SEP]",
    "[MASK]",
    "[sep]",
    "don't",
    "...",
    "#tag",
    "🎺",
    "\u200d",
    "\x00",
    "\ufffd",
    "x" * 101,
    "İ",
    "ß",
]
OPTIONS = (
    {"do_lower_case": True},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
)


def write(folder, vocabulary=VOCABULARY, **options):
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(PIECES, rng.integers(0, 25))) for _ in range(count)]


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("options", OPTIONS)
def test_ids_equal_transformers(tmp_path, options, form):
    theirs = BertTokenizer.from_pretrained(write(tmp_path, **options))
    folder = tmp_path
    if form == "tokenizer.json":
        folder = tmp_path / "saved"
        theirs.save_pretrained(folder)
        assert (folder / form).is_file() and not (folder / "vocab.txt").exists()
    ours = load_bert_tokenizer(folder, len(VOCABULARY))
    first, second = texts(150), texts(150, seed=1)
    for text, ids in zip(first, theirs(first)["input_ids"], strict=True):
        assert ours.encode(text).ids == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    pairs = theirs(first, second)
    for a, b, ids, types in zip(first, second, pairs["input_ids"], pairs["token_type_ids"], strict=True):
        found = ours.encode(a, b)
        assert (found.ids, found.type_ids) == (ids, types), (a, b)
    ours.encode_special_tokens = True
    for text in first[:50]:
        assert ours.encode(text).ids == theirs(text, split_special_tokens=True)["input_ids"], text


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("tokenizer"), do_lower_case=True)
    return load_bert_tokenizer(folder, len(VOCABULARY)), BertTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("length", [4, 7, 16, 64])
@pytest.mark.parametrize("pairs", [False, True])
def test_rows_of_a_fixed_length(both, length, pairs):
    ours, theirs = both
    first, second = texts(150), texts(150, seed=1) if pairs else None
    found = make_encoder(ours, length)(first, second)
    expected = theirs(
        first, second, truncation=True, max_length=length, padding="max_length", return_offsets_mapping=True
    )
    assert found.tokens.shape == found.mask.shape == found.token_types.shape == (150, length)
    np.testing.assert_array_equal(found.tokens, expected["input_ids"])
    np.testing.assert_array_equal(found.mask, np.array(expected["attention_mask"], bool))
    np.testing.assert_array_equal(found.token_types, expected["token_type_ids"])
    np.testing.assert_array_equal(found.offsets, expected["offset_mapping"])
    np.testing.assert_array_equal(found.row, np.arange(150))
    assert len(ours.encode(" ".join(first)).ids) > length  # the tokenizer itself does not cut


@pytest.mark.parametrize("stride", [0, 3])
def test_windows(both, stride):
    ours, theirs = both
    questions, contexts = ["Who play s?", "café", ""] * 20, texts(60, seed=2)
    found = make_encoder(ours, 20, stride=stride)(questions, contexts)
    expected = theirs(
        questions,
        contexts,
        truncation="only_second",
        max_length=20,
        stride=stride,
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert len(found.row) > 90
    np.testing.assert_array_equal(found.row, expected["overflow_to_sample_mapping"])
    np.testing.assert_array_equal(found.tokens, expected["input_ids"])
    np.testing.assert_array_equal(found.mask, np.array(expected["attention_mask"], bool))
    np.testing.assert_array_equal(found.token_types, expected["token_type_ids"])
    np.testing.assert_array_equal(found.offsets, expected["offset_mapping"])
    number = next(i for i, text in enumerate(contexts) if "trumpet" in text or "play" in text)
    rows = np.flatnonzero(found.row == number)
    words = {
        contexts[number][slice(*found.offsets[row, at])].lower()
        for row in rows
        for at in np.flatnonzero(found.token_types[row])
    }
    assert "play" in words  # offsets are places in the text


def test_no_texts(both):
    found = make_encoder(both[0], 8)([])
    assert found.tokens.shape == (0, 8) and found.offsets.shape == (0, 8, 2)


def test_texts_that_do_not_fit(both):
    tokenizer, _ = both
    with pytest.raises(UserError, match="A length of 3 with a stride of None leaves no room for texts"):
        make_encoder(tokenizer, 3)
    with pytest.raises(UserError, match="A length of 9 with a stride of -1 leaves no room"):
        make_encoder(tokenizer, 9, stride=-1)
    with pytest.raises(UserError, match="There are 2 texts and 1 second ones; give one for each"):
        make_encoder(tokenizer, 9)(["a", "b"], ["c"])
    windows = make_encoder(tokenizer, 12, stride=4)
    with pytest.raises(UserError, match="A stride is for pairs of texts"):
        windows(["a"])
    assert len(windows(["a b c d"], ["e f g h i j"]).row) == 2
    with pytest.raises(UserError, match="Text 1 has 5 tokens, which leaves 4 of 12 for the second text, not more than"):
        windows(["a", "a b c d e"], ["f", "f"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab.txt": None}, r"holds no tokenizer: there is neither tokenizer\.json nor vocab\.txt; copy"),
        ({"tokenizer_config.json": None}, r"tokenizer_config\.json cannot be read \(No such file"),
        ({"tokenizer_config.json": "{}"}, r"tokenizer_config\.json does not say do_lower_case; add it as true or f"),
        ({"tokenizer_config.json": '{"do_lower_case": "yes"}'}, r"tokenizer_config\.json says do_lower_case 'yes'; a"),
        (
            {"tokenizer_config.json": '{"do_lower_case": true, "tokenizer_class": "ElectraTokenizer"}'},
            r"of the class 'ElectraTokenizer', and from vocab\.txt only BertTokenizer can be built",
        ),
        ({"vocab.txt": ""}, r"vocab\.txt has no \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]; copy it again"),
        ({"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[MASK]\na\n"}, r"vocab\.txt has no \[SEP\]; copy it again"),
        ({"vocab.txt": b"\xff\xfe"}, r"vocab\.txt is not UTF-8 text"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json describes no tokenizer"),
        (
            {"tokenizer.json": '{"model": {"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0}, '
             '"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}}'},
            r"is not BERT's: it has no \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]; copy",
        ),
    ],
)  # fmt: skip
def test_damaged_folders(tmp_path, change, sentence):
    write(tmp_path, do_lower_case=True)
    for name, content in change.items():
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence):
        load_bert_tokenizer(tmp_path, len(VOCABULARY))


def test_a_tokenizer_of_another_model(tmp_path):
    last = len(VOCABULARY) - 1
    write(tmp_path, do_lower_case=True)
    with pytest.raises(UserError, match=f"has ids up to {last}, but the model has {last} embeddings; take the token"):
        load_bert_tokenizer(tmp_path, last)
