"""The whole thinker against transformers: logits of the prompt, of cached decoding, and greedy answers."""

import dataclasses

import numpy as np
import pytest
import torch

from models.batching import padded
from models.decoder import DecoderConfig
from models.qwen2_5_omni.config import AudioConfig, ThinkerConfig, VisionConfig
from models.qwen2_5_omni.prompt import expand
from tests.models.cached import logits_through_cache
from tests.models.qwen2_5_omni.thinkers import embedded, loaded_thinker, random_case, reference_thinker, theirs
from tests.models.qwen2_5_omni.towers import DRAWS, STRUCTURES
from tests.tiers import quick_first
from tests.tolerances import LOGITS

STEPS = 32
LENGTH = 320


def random_config(rng):
    heads, kv_heads = [(4, 2), (4, 1), (4, 4), (2, 1), (8, 2), (6, 3)][rng.integers(6)]
    section = [(2, 3, 3), (1, 4, 3), (4, 2, 2)][rng.integers(3)]
    size = heads * 16
    text = DecoderConfig(
        64, size, 2, heads, kv_heads, 16, 96, float(rng.choice([1e4, 1e6])), 1e-6, 4096, True, False, section
    )
    return ThinkerConfig.tiny(
        text=text,
        vision=VisionConfig.tiny(out_hidden_size=size, num_heads=int(rng.choice([1, 2])), depth=2),
        audio=AudioConfig.tiny(output_dim=size, num_mel_bins=16, n_window=int(rng.choice([50, 100]))),
        position_id_per_seconds=int(rng.choice([25, 13])),
        seconds_per_chunk=int(rng.choice([1, 2])),
    )


def our_logits(ours, chunks, answers):
    """Logits [B, STEPS, V] of the prompts' last tokens and of all but the last token of the answers."""
    before, after = padded(chunks, LENGTH).arguments(), answers[:, :-1].astype(np.int32)
    return np.asarray(logits_through_cache(ours.params["decoder"], before, after, decoder=ours.decoder)).swapaxes(0, 1)


def made_by_transformers(reference, case, tokens, config):
    """A greedy answer [STEPS], and the logits it was chosen by [STEPS, V], equal with and without their cache."""
    with torch.no_grad():
        out = reference.generate(
            **theirs(case, tokens, config),
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    answer, logits = out.sequences[0, len(tokens) :].numpy(), torch.cat(out.logits).numpy()
    whole = dataclasses.replace(case, parts=[*case.parts, answer.tolist()])
    with torch.no_grad():  # without a cache, over prompt and answer
        full = reference(**theirs(whole, expand(whole.parts, config), config)).logits[0, len(tokens) - 1 : -1]
    np.testing.assert_allclose(logits, full.numpy(), **LOGITS)
    return answer, logits


@pytest.fixture(scope="module", params=quick_first(range(STRUCTURES)))
def structure(request):
    return request.param, random_config(np.random.default_rng(request.param))


@pytest.mark.parametrize("draw", quick_first(range(DRAWS)))
def test_equals_transformers(structure, draw, tmp_path):
    """Both layouts, several media to a prompt; in one batch of ragged rows."""
    number, config = structure
    rng = np.random.default_rng((number, draw))
    reference = reference_thinker(config, DRAWS * number + draw)
    ours = loaded_thinker(config, reference, tmp_path)
    chunks, answers, expected = [], [], []
    for interleaved in (True, False):
        case = random_case(rng, config, interleaved=interleaved)
        tokens, chunk = embedded(ours, case)
        answer, logits = made_by_transformers(reference, case, tokens, config)
        chunks.append(chunk)
        answers.append(answer)
        expected.append(logits)
    found = our_logits(ours, chunks, np.stack(answers))
    np.testing.assert_allclose(found, np.stack(expected), **LOGITS)
    assert (found.argmax(-1) == np.stack(answers)).all()
