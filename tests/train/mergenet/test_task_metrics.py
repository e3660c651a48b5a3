"""Accuracy of answers and recall of retrieval against plain definitions; a vocabulary out of texts."""

import io
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from models.errors import UserError
from train.mergenet.fixtures.examples import open_fixtures
from train.mergenet.fixtures.scenes import PEOPLE, SCENES, picture
from train.mergenet.tasks.answers import NONE, accuracy, frequent, normalised, soft_targets, vqa_accuracy
from train.mergenet.tasks.pictures import in_rgb
from train.mergenet.tasks.retrieval import recalls
from train.mergenet.tasks.vocabulary import build_tokenizer


def leaving_one_out(answer: str, people: list[str]) -> float:
    """The definition: over all sets of one person less, min(1, those who agree / 3)."""
    scores = []
    for others in itertools.combinations(people, len(people) - 1):
        scores.append(min(1.0, sum(other == answer for other in others) / 3))
    return sum(scores) / len(scores)


def test_accuracy_of_an_answer() -> None:
    for agreeing in range(11):
        people = ["red"] * agreeing + ["blue"] * (10 - agreeing)
        assert accuracy(agreeing) == pytest.approx(leaving_one_out("red", people), abs=1e-12)
    assert [accuracy(n) for n in (0, 3, 4)] == pytest.approx([0, 0.9, 1])


def test_accuracy_over_questions_and_as_targets() -> None:
    rng = np.random.default_rng(0)
    words = ["no", "yes", "red", "2"]
    people = [[words[i] for i in rng.choice(4, 10, p=(0.1, 0.5, 0.2, 0.2))] for _ in range(30)]
    answers = [words[i] for i in rng.integers(0, 4, 30)]
    expected = [leaving_one_out(answer, own) for answer, own in zip(answers, people, strict=True)]
    assert vqa_accuracy(answers, people) == pytest.approx(np.mean(expected))
    given = [[words.index(word) if word != "2" else NONE for word in own] for own in people]
    targets = soft_targets(jnp.asarray(given, jnp.int32), 5)
    wanted = [[leaving_one_out(word, own) for word in words[:3]] + [0, 0] for own in people]
    np.testing.assert_allclose(targets, wanted, atol=1e-6)


def test_answers_are_normalised() -> None:
    assert normalised("The  two dogs.") == "2 dogs" and normalised("1,000") == "1000" and normalised("2.5") == "2.5"
    assert normalised("Yes!") == "yes" and normalised("red/blue") == "red blue" and normalised("none") == "0"
    assert frequent(["b", "A cat", "cat", "B", "c", "a"], 2) == ["b", "cat"]  # "a" is an article


def ranked(scores: np.ndarray, right: set[int]) -> int:
    """Wrong ones at least as good as the best right one."""
    best = max(scores[i] for i in right)
    return sum(1 for i, score in enumerate(scores) if i not in right and score >= best)


@pytest.mark.parametrize("block", [4, 256])
def test_recall(block: int) -> None:
    rng = np.random.default_rng(1)
    pictures, captions = rng.normal(size=(23, 6)), rng.normal(size=(23, 5, 6))
    captions += 0.5 * pictures[:, None]
    captions[3, 2] = captions[7, 1]  # equal scores
    found = recalls(pictures, captions, block)
    scores = np.array([[pictures[i] @ captions[j, c] for j in range(23) for c in range(5)] for i in range(23)])
    text = [ranked(scores[i], set(range(5 * i, 5 * i + 5))) for i in range(23)]
    image = [ranked(scores[:, j], {j // 5}) for j in range(115)]
    expected = {f"text_r{k}": sum(place < k for place in text) / 23 for k in (1, 5, 10)}
    expected |= {f"image_r{k}": sum(place < k for place in image) / 115 for k in (1, 5, 10)}
    assert found == pytest.approx(expected | {"recall": sum(expected.values()) / 6})
    assert 0.1 < found["text_r1"] < found["text_r10"] < 1 and 0.1 < found["image_r1"] < found["image_r10"] < 1


def test_what_is_not_a_number_finds_nothing() -> None:
    vectors = np.full((12, 3), np.nan)
    assert set(recalls(vectors, vectors[:, None].repeat(5, 1)).values()) == {0.0}
    same = np.ones((12, 3))
    assert recalls(same, same[:, None].repeat(5, 1))["recall"] == 0  # all scores equal


def test_vocabulary_holds_frequent_words_and_all_letters() -> None:
    texts = ["The cat sat.", "the dog sat on the cat", "A zebra"]
    tokenizer = build_tokenizer(texts, 60)
    assert tokenizer.get_vocab() == build_tokenizer(iter(texts), 60).get_vocab()
    assert tokenizer.encode("THE cat sat on a zebra .", add_special_tokens=False).tokens == [
        *("the", "cat", "sat", "on", "a", "zebra", ".")
    ]
    small = build_tokenizer(texts, 35)  # 5 special tokens, 14 letters twice, 2 words
    assert small.encode("the sat dog", add_special_tokens=False).tokens == ["the", "s", "##a", "##t", "d", "##o", "##g"]
    with pytest.raises(UserError, match="14 different characters, too many for a vocabulary of 32"):
        build_tokenizer(texts, 32)


def test_pictures_in_cmyk_become_rgb() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).convert("CMYK").save(file, "TIFF")
    stored = np.asarray(Image.open(file))
    assert stored.shape == (4, 5, 4)
    assert np.abs(in_rgb(stored).astype(int) - colours).max() <= 2
    assert in_rgb(colours) is colours


def test_fixtures_are_apart_and_whole() -> None:
    for name, key, count in (("imdb_reviews", "text", 48), ("squad", "id", 44), ("vqa_v2", "image/id", 48)):
        parts = [[row[key] for row in open_fixtures(name, split)] for split in ("train", "validation", "test")]
        assert sum(map(len, parts)) == count == len({key for part in parts for key in part}) and all(parts)
    assert len({picture(*scene).tobytes() for scene in SCENES}) == len(SCENES) == 48
    for row in open_fixtures("squad", "train"):
        for text, start in zip(*row["answers"].values(), strict=True):
            assert row["context"][start:].startswith(text)
    for row in open_fixtures("vqa_v2", "test"):
        assert len(row["answers"]) == PEOPLE * len(row["questions"]["text"]) and len(row["captions"]["text"]) == 5
    with pytest.raises(ValueError, match="There is no split 'dev'"):
        open_fixtures("squad", "dev")
