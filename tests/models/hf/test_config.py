"""config.json: both spellings, and one sentence for everything that is wrong with it."""

import json

import pytest

from models.errors import UserError
from models.hf.config import Section, model_type, read_config, reading, rope


def section(tmp_path, **values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    return read_config(tmp_path)


def test_values(tmp_path):
    config = section(tmp_path, size=3, eps=1, flag=True, inner={"blocks": [1, 2]}, head_dim=None)
    assert config.need("size", int) == 3
    assert config.need("eps", float) == 1.0 and type(config.need("eps", float)) is float
    assert config.section("inner").integers("blocks") == (1, 2)
    assert config.get("head_dim", int, 8) == 8 and config.get("flag", bool, False)
    config.check()


def test_all_problems_are_told_at_once(tmp_path):
    section(tmp_path, hidden_size="32", flag=1, text_config={"depth": True, "ids": [1, 2.5], "eps": "no"}, audio=3)
    with pytest.raises(UserError) as told, reading(tmp_path) as config:
        config.need("hidden_size", int)
        config.need("flag", bool)
        text = config.section("text_config")
        text.need("depth", int)
        text.integers("ids")
        text.get("eps", float, 1.0)
        text.need("rows", int)
        text.need("rows", int)
        config.section("audio").need("layers", int)
        assert 1 // text.need("rows", int)  # fails on the stand-in: the cause is told, not this
    assert str(told.value) == (
        f"{tmp_path / 'config.json'} cannot be used: hidden_size must be of type int, not '32'; flag must be of type "
        "bool, not 1; text_config.depth must be of type int, not True; text_config.ids must hold integers only, not "
        "[1, 2.5]; text_config.eps must be of type float, not 'no'; text_config.rows is missing; audio must be of type "
        "dict, not 3."
    )


def test_positive_integers(tmp_path):
    section(tmp_path, rows=3, zero=0, negative=-2, text="3", flag=True, null=None)
    with pytest.raises(UserError) as told, reading(tmp_path) as config:
        assert config.positive("rows") == 3 and config.positive("rows", 5) == 3
        assert config.positive("absent", 5) == 5 and config.positive("null", 5) == 5
        for name in ("zero", "negative", "text", "flag", "absent", "null"):
            config.positive(name)
        config.positive("zero", 5)
    assert str(told.value) == (
        f"{tmp_path / 'config.json'} cannot be used: zero must be at least 1, not 0; negative must be at least 1, not "
        "-2; text must be of type int, not '3'; flag must be of type int, not True; absent is missing; null is missing."
    )


def test_failures_of_the_reader_are_not_hidden(tmp_path):
    section(tmp_path, size=0)
    with pytest.raises(ZeroDivisionError), reading(tmp_path) as config:
        assert 1 // config.need("size", int)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 1e6},
        {"rope_theta": 1000000, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ],
)
def test_rope(tmp_path, spelling):
    assert rope(section(tmp_path, **spelling)) == (1e6, None)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}},
        {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 1, 1]}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}},
    ],
)
def test_sectioned_rope(tmp_path, spelling):
    assert rope(section(tmp_path, **spelling)) == (1e6, (2, 1, 1))


@pytest.mark.parametrize(
    ("spelling", "sentence"),
    [
        ({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}, r"type 'yarn' \(rope_scaling\)"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, r"type 'linear' \(rope_parameters\)"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0, "partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor, which change",
        ),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1.0},
                "rope_scaling": {"type": "yarn", "factor": 4.0},
            },
            r"type 'yarn' \(rope_scaling\)",
        ),
        ({}, "rope_theta is missing"),
        ({"rope_parameters": {}}, "rope_parameters.rope_type is missing; rope_parameters.rope_theta is missing"),
        ({"rope_theta": 1.0, "rope_scaling": {"type": "mrope"}}, "rope_scaling.mrope_section is missing"),
    ],
)
def test_rope_that_is_not_supported(tmp_path, spelling, sentence):
    section(tmp_path, **spelling)
    with pytest.raises(UserError, match=sentence), reading(tmp_path) as config:
        rope(config)


def test_model_type(tmp_path):
    config = section(tmp_path, model_type="gpt2", inner={"model_type": "qwen2"})
    assert model_type(config.section("inner"), ["llama", "qwen2"]) == "qwen2"
    with pytest.raises(UserError, match="model_type 'gpt2', which is not supported; supported are llama, qwen2"):
        model_type(config, ["llama", "qwen2"])
    with pytest.raises(UserError, match="model_type is missing"):
        model_type(Section(config.file, {}), ["llama"])


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="There is no folder .*absent"):
        read_config(tmp_path / "absent")
    with pytest.raises(UserError, match="is no checkpoint: it has no config.json"):
        read_config(tmp_path)
    file = tmp_path / "config.json"
    for damaged in (b'{"a": 1', b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="is not readable JSON"):
            read_config(tmp_path)
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_config(tmp_path)
    file.write_text("[1]")
    with pytest.raises(UserError, match="must hold a JSON object, not a list"):
        read_config(tmp_path)


def test_folders_that_are_no_checkpoints_are_named_for_what_they_are(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint: it has no config\.json"):
        read_config(tmp_path)
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for folder in (tmp_path / "hub", tmp_path / "hub" / "models--org--model"):
        with pytest.raises(UserError, match=f"is a cache of the Hugging Face hub; .* such as {snapshot}"):
            read_config(folder)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is a LoRA adapter, not a whole model; merge it"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"weights in .* are quantised \(gptq\).*in bfloat16 or float32"):
        section(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "config.json").write_text('\ufeff{"size": 3}')
    assert read_config(tmp_path).need("size", int) == 3


def test_a_pointer_of_git_lfs_is_told(tmp_path):
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(UserError, match="is a pointer of Git LFS.*git lfs pull"):
        read_config(tmp_path)
