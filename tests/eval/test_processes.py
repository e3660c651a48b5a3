"""Two processes of four devices each: the tokens of one device, and what is left when one of them dies."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from acckv_jax import POLICIES
from models.media.clip_writer import write_clip
from tests.docs.pages import ROOT
from tests.models.qwen2_5_omni.checkpoints import write_omni
from tests.models.qwen2_5_omni.vocabulary import write_tokenizer
from tests.models.videollama2.cases import MODEL
from tests.models.videollama2.checkpoints import write_checkpoint
from tests.processes import Processes
from tests.tiers import quick_first

VOCABULARY = 152_064
SECONDS = 900
A_MINUTE = 60


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 80, 3)).astype(np.uint8)
    write_clip(path, frames, 1, np.sin(np.arange(48000) / 8).astype(np.float32) / 4)
    return path


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    return write_omni(tmp_path_factory.mktemp("omni"))


def written(model, folder):
    if model == "smolav":
        return model
    if model == "qwen2_5_omni":
        return str(write_omni(folder))
    write_checkpoint(folder, MODEL[0], bins=True, vocab_size=VOCABULARY, max_position_embeddings=4096)
    write_tokenizer(folder, form="vocab.json")
    return str(folder)


@pytest.mark.parametrize(
    ("model", "policies"),
    quick_first(
        [
            ("qwen2_5_omni", ["acckv_plus"]),
            ("qwen2_5_omni", []),
            ("videollama2", []),
            ("smolav", ["full", "snapkv", "acckv_plus"]),
        ]
    ),
)
def test_tokens_are_those_of_one_device(model, policies, clip, tmp_path):
    module = "tests.eval.asks_every_policy"
    arguments = [written(model, tmp_path), str(clip), *(["--policies", *policies] if policies else [])]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    alone = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    devices = 2 if policies == ["acckv_plus"] else 4
    with Processes.start(module, arguments, devices=devices) as two:
        (status, first, err), (other, second, other_err) = two.outputs(SECONDS)
    assert (status, other) == (0, 0), err + other_err
    assert json.loads(first) == json.loads(alone.stdout) and len(json.loads(first)) == len(policies or POLICIES)
    assert second == ""  # only the first process prints


@pytest.mark.complete
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_and_nothing_is_lost(killed, clip, omni, tmp_path):
    questions, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    rows = [{"id": f"{n}", "clip": str(clip), "question": f"What is shown {'very ' * n}early?"} for n in range(40)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", str(omni), "--batch", str(questions), "--out", str(out), "--rows", "8"]
    arguments += ["--max-new-tokens", "3", "--budget", "0.5"]
    with Processes.start("eval.answer", arguments) as two:
        end = time.monotonic() + SECONDS
        while not (out.exists() and out.read_bytes().count(b"\n") >= 8):
            assert time.monotonic() < end and all(one.poll() is None for one in two.started), two.outputs(1)
            time.sleep(0.05)
        two.kill(killed)
        (status, _, _), (other, _, err) = two.outputs(2 * A_MINUTE)
    assert status != 0 and other != 0
    before = out.read_bytes()
    kept = before[: before.rfind(b"\n") + 1].splitlines()
    assert 8 <= len(kept) < 40, "killed too late for this test to show anything"

    with Processes.start("eval.answer", arguments) as two:
        found = two.outputs(SECONDS)
    assert [status for status, *_ in found] == [0, 0], found
    lines = out.read_bytes().splitlines()
    assert lines[: len(kept)] == kept
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(row["id"] for row in rows)
    assert all("answer" in json.loads(line) for line in lines)


@pytest.mark.complete
def test_the_example_of_two_processes(clip, omni):
    options = [str(clip), "What is shown?", "--model", str(omni), "--budget", "0.5", "--max-new-tokens", "3", "--json"]
    command = [str(ROOT / "examples" / "two_processes.sh"), *options]
    environment = os.environ | {"PYTHON": sys.executable}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["policy"] == "quantized(acckv_plus)"


@pytest.mark.complete
def test_a_mistake_is_one_sentence_and_ends_all(clip, omni):
    with Processes.start("eval.answer", [str(clip), "What?", "--model", str(omni), "--mesh", "data=3"]) as two:
        found = two.outputs(SECONDS)
    for status, out, _ in found:
        assert status in (2, -6, 1) and out == ""
    assert any(status == 2 and "This machine has 8 devices, but --mesh data 3 is 3." in err for status, _, err in found)
    assert not any("Traceback" in err for *_, err in found)
