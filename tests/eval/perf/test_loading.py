"""The measurement of host memory, on a tiny checkpoint."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from flax import nnx

from eval.perf.loading import Options, measure, qwen2_of
from models.decoder import Decoder, DecoderConfig
from models.hf.decoder import decoder_tensors
from models.hf.export import save_params
from models.layers.init import init_params

HELD = """
import time
import numpy as np
from eval.perf.loading import Peak
with Peak() as peak:
    held = np.ones(100_000_000, np.uint8)
    time.sleep(0.2)
    del held
print(peak.growth("RssAnon"))
"""


@pytest.mark.complete
def test_peak_sees_memory_that_is_freed_again():
    # in a process of its own: here, memory that earlier tests left can be given back meanwhile
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    assert 90e6 < int(done.stdout) < 150e6


def test_size_of_the_random_model():
    config = qwen2_of(3e9)
    layer = config.hidden_size * (2 * config.hidden_size + 2 * 512 + 3 * config.intermediate_size)
    size = 2 * (config.num_hidden_layers * layer + 2 * config.vocab_size * config.hidden_size)
    assert size == pytest.approx(3e9, rel=0.02)


def test_table(tmp_path, capsys):
    config = DecoderConfig.tiny(attention_bias=True)
    _, params = init_params(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    values = dataclasses.asdict(config) | {"model_type": "qwen2", "hidden_act": "silu"}
    save_params(tmp_path / "a", params, decoder_tensors(config), values)
    measure(Options(tmp_path / "a"))
    printed = capsys.readouterr().out
    assert "onto 8 devices" in printed and "peak growth beyond the parameters" in printed


def test_command_tells_of_a_folder_that_is_no_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    command = [sys.executable, "-m", "eval.perf.loading", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 2 and "'gpt2', which is not supported" in done.stderr
