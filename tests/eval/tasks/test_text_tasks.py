"""Tasks of text alone: prompts of SmolLM2's real tokenizer over a random decoder of two layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.benchmark import Options, build_policies, main, measure, summary
from eval.tasks.keys import COUNTS, Keys
from eval.tasks.pass_key import DEPTHS, PassKey
from eval.tasks.perplexity import CONTEXT, FOLLOWING, Perplexity
from eval.text import LENGTHS
from models.errors import UserError
from models.interface import EmbeddedPrompt
from models.smolav.chat import SmolLM2Chat
from train.smolav import language_model


@pytest.fixture(scope="module")
def model(small_model):
    m = small_model
    return SmolLM2Chat("small", m.decoder_config, m.graph, m.all_params, m.tokenizer, m.chat)


@pytest.fixture
def read(model, monkeypatch):
    """Prompts as their token ids."""

    def ids(_, tokens):
        return EmbeddedPrompt.of(np.asarray(tokens, np.int32), np.zeros(len(tokens), np.int32))

    monkeypatch.setattr(SmolLM2Chat, "embed_text", ids)
    return lambda prompt: model.tokenizer.decode(
        np.concatenate(prompt.buffers)[prompt.rows].tolist(), skip_special_tokens=False
    )


def test_a_pass_key_stands_once_at_its_depth(model, read):
    task = PassKey(model)
    for number in range(len(LENGTHS) * len(DEPTHS)):
        example = task.example(str(number))
        [[question]] = example.conversations
        text, prompt = read(example.prefix), read(task.prompt([question]))
        length, depth = LENGTHS[number % 4], DEPTHS[number // 4]
        assert length - 110 < len(example.prefix) + len(task.prompt([question])) + task.max_new_tokens <= length
        assert question.group == f"{length} tokens"
        assert abs(text.index(question.references[0]) / len(text) - depth) < 0.15
        assert text.startswith("<|im_start|>user\n") and text.count(question.references[0]) == 2
        assert prompt == "What is the pass key?<|im_end|>\n<|im_start|>assistant\nThe pass key is "
    assert [task.score(answer, question) for answer in (f"{question.references[0]}.", "12", "")] == [1, 0, 0]


def test_two_keys_are_asked_for_on_one_cache(model, read):
    task = Keys(model)
    for number in range(6):
        example = task.example(str(number))
        [[first, second]] = example.conversations
        lines = read(example.prefix).splitlines()[1:]
        assert len(lines) == COUNTS[number % 3] == len({line.split()[4] for line in lines})
        for question in (first, second):
            key = question.text.removesuffix("?").split()[-1]
            assert f"The number of the {key} is {question.references[0]}." in lines
        assert first != second
        assert read(task.prompt([first, second])).startswith(f"{first.references[0]}<|im_end|>")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    path.write_text(" ".join(f"the {rng.integers(1000)} birds" for _ in range(600)))
    return path


@pytest.mark.complete
def test_the_unpruned_loss_is_that_of_one_pass(model, text, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.tasks.perplexity.load_text_model", lambda name: model)
    task = Perplexity.load("smollm2", text)
    assert len(task.ids) == len(task.text) // (CONTEXT + FOLLOWING) >= 1
    example = task.example("0")
    policies = build_policies(("snapkv",), ("1.0", "0.25"), task)
    found = [float(said[0][0]) for _, said in task.answers(example, policies, list(policies))]
    assert found[0] == pytest.approx(found[1], abs=1e-4) and found[2] != pytest.approx(found[0], abs=1e-4)

    # All losses from one pass of the decoder as training runs it.
    frozen = language_model.freeze(model.all_params["decoder"], jnp.float32)
    ids = jnp.asarray(task.text[: CONTEXT + FOLLOWING])[None]
    positions, mask = jnp.arange(ids.shape[1])[None], jnp.tril(jnp.ones((1, ids.shape[1], ids.shape[1]), bool))
    embedded = language_model.embed(frozen, ids)
    hidden = language_model.forward(model.decoder_config, frozen, {}, 1.0, embedded, positions, mask)
    scores = jax.nn.log_softmax(language_model.logits(frozen, hidden[:, CONTEXT - 1 : -1]))
    expected = -np.mean(np.take_along_axis(np.asarray(scores), np.asarray(ids)[:, CONTEXT:, None], axis=-1))
    assert found[0] == pytest.approx(expected, abs=1e-3)

    options = Options("perplexity", policies=("snapkv",), budgets=("0.25",), examples=1)
    result = summary(measure(options, tmp_path / "answers.jsonl", lambda *_: task))
    assert [row["all"]["score"] for row in result["rows"]] == pytest.approx([found[0], found[2]], abs=1e-4)


def test_what_a_text_must_be(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("eval.tasks.perplexity.load_text_model", lambda name: model)
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe\x00")
    for data, sentence in (
        (None, "name it --data"),
        (tmp_path, "name it --data"),
        (short, "has 2 tokens, fewer than 1152; take a longer text"),
        (binary, "cannot be read as text in UTF-8"),
    ):
        with pytest.raises(UserError, match=sentence):
            Perplexity.load("smollm2", data)
    with pytest.raises(UserError, match="asks smollm2, a language model without eyes and ears, not smolav"):
        PassKey.load("smolav", None)
    monkeypatch.chdir(tmp_path)
    assert main(["--task", "keys", "--data", "."]) == 2
    assert "makes up its texts and reads no data from .; leave out --data" in capsys.readouterr().err
