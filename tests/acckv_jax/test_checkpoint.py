"""Saved caches come back as they were, go on as if never saved, and what is wrong with a folder is a sentence."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.checkpoint import FORMAT
from acckv_jax.checkpoint_tree import CLASSES
from acckv_jax.testing import tiny_decoder
from acckv_jax.wrappers.quantized import QuantizedSlots
from tests.acckv_jax.test_stacks import (
    COUNTS,
    INPUTS,
    LOOP,
    PARAMS,
    POLICIES,
    PROMPT,
    SCANS,
    Following,
)
from tests.tiers import quick_only

ROOT = Path(__file__).parents[2]
TINY = kv.ModelIdentity("tiny", num_layers=2, kv_heads=2, head_dim=16)

FILL_THE_DISK = """
import resource, sys
from pathlib import Path
import acckv_jax as kv
from acckv_jax.testing import tiny_decoder
decoder, params, inputs, prompt = tiny_decoder()
_, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Full())
folder = Path(sys.argv[1])
for limit in (64, 300, 1000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        kv.save_cache(folder / "clip", cache)
    except ValueError as error:
        print(error, sorted(path.name for path in folder.iterdir()))
"""


def assert_equal(found, expected):
    """The same class, static fields and all, and the same numbers of the same types."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype and type(one) is type(other)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


def through_disk(folder, saved, **options):
    kv.save_cache(folder / "saved", saved, **options)
    return kv.load_cache(folder / "saved", **options)


@pytest.fixture(scope="module")
def small():
    """Decoder, parameters, and a cache with a state, of one row."""
    decoder, params, inputs, prompt = tiny_decoder()
    logits, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
    return decoder, params, kv.start_decoding(logits, cache, jax.random.key(7))


@pytest.fixture
def saved(small, tmp_path):
    """A folder with a cache in it."""
    kv.save_cache(tmp_path / "clip", small[2], model=TINY)
    return tmp_path / "clip"


@pytest.mark.parametrize("name", quick_only(POLICIES, ("per_layer", "quantized", "quantized_4")))
@pytest.mark.parametrize(
    "decoder", quick_only([LOOP, SCANS["run_layers"]], (SCANS["run_layers"],)), ids=["loop", "scan"]
)
def test_decoding_goes_on_as_if_never_saved(decoder, name, tmp_path):
    policy = POLICIES[name]
    room = policy.reserved_slots(6)
    logits, cache = kv.jitted.prefill(decoder, PARAMS, INPUTS, PROMPT, policy, reserved_slots=room)
    sampler = kv.Sample(temperature=1.0)
    state = kv.start_decoding(logits, cache, jax.random.key(3), sampler=sampler)
    loaded = through_disk(tmp_path, state)
    assert_equal(loaded, state)
    assert [x.num_layers for x in loaded.cache.stacks] == (
        COUNTS.get(name, [LOOP.num_layers]) if decoder.scans else [1] * LOOP.num_layers
    )
    assert kv.cache_bytes(loaded.cache) == kv.cache_bytes(cache)
    found, _, after = kv.jitted.decode(decoder, PARAMS, loaded, policy, steps=6, sampler=sampler)
    expected, _, expected_after = kv.jitted.decode(decoder, PARAMS, state, policy, steps=6, sampler=sampler)
    np.testing.assert_array_equal(found, expected)
    assert_equal(after, expected_after)


def test_an_answer_can_be_followed_up(tmp_path):
    decoder, params, inputs, prompt = tiny_decoder()  # the programs of generate's example
    more = {"policy": kv.Knorm(budget=0.5), "max_new_tokens": 4}
    first = kv.generate(decoder, params, inputs, prompt, **more)
    loaded = through_disk(tmp_path, first)
    assert_equal(loaded.state, first.state)
    assert loaded.cache_bytes == first.cache_bytes and loaded.kept == first.kept
    np.testing.assert_array_equal(loaded.tokens, first.tokens)
    assert isinstance(loaded.tokens, np.ndarray) and isinstance(loaded.num_tokens, np.ndarray)
    question = kv.make_prompt(np.zeros((1, 8), int))
    found, expected = (
        kv.generate(decoder, params, inputs[:, :8], question, **more, after=after) for after in (loaded, first)
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_a_scored_prompt_is_pruned_later(tmp_path):
    policies = (Following(budget=0.5), kv.SnapKV(budget=0.4, window_size=8))
    _, scored = kv.jitted.score(SCANS["run_layers"], PARAMS, INPUTS, PROMPT, policies)
    loaded = through_disk(tmp_path, scored)
    assert_equal(loaded, scored)
    assert loaded.queries == scored.queries and loaded.inputs[0].keys() == {"hidden_states", "output_weights"}
    for policy in policies:
        assert_equal(kv.prune(loaded, policy, reserved_slots=4), kv.prune(scored, policy, reserved_slots=4))


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 8), ("bfloat16", 4)])
def test_types_are_kept_and_empty_arrays(small, tmp_path, dtype, bits):
    cache = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, small[2].cache)
    full = (QuantizedSlots.of(x.k, x.valid, 0, per_channel=True, bits=bits) for x in cache.stacks)  # no free slot
    stacks = (dataclasses.replace(x, k=k, reserved_slots=0) for x, k in zip(cache.stacks, full, strict=True))
    quantized = dataclasses.replace(cache, stacks=tuple(stacks))
    assert any(x.size == 0 for x in jax.tree.leaves(quantized))
    assert_equal(through_disk(tmp_path, quantized), quantized)


def test_a_model_is_checked(small, saved, tmp_path):
    assert_equal(kv.load_cache(saved, model=TINY), small[2])
    assert_equal(kv.load_cache(saved, model="tiny"), small[2])
    sizes = r"'tiny' \(layers: 2, KV heads: 2, head size: 16\)"
    with pytest.raises(ValueError, match=rf"clip holds a cache of {sizes}, not of 'other'\."):
        kv.load_cache(saved, model="other")
    with pytest.raises(ValueError, match=rf"holds a cache of {sizes}, not of 'tiny' \(layers: 2, KV heads: 4, head"):
        kv.load_cache(saved, model=dataclasses.replace(TINY, kv_heads=4))
    with pytest.raises(ValueError, match=rf"the cache has the sizes of {sizes}, not those of 'tiny' \(layers: 3"):
        kv.save_cache(tmp_path / "new", small[2], model=dataclasses.replace(TINY, num_layers=3))
    kv.save_cache(tmp_path / "unnamed", small[2])
    with pytest.raises(ValueError, match=r"holds a cache of a model without a name \(layers: 2, .*\), not of 'tiny'"):
        kv.load_cache(tmp_path / "unnamed", model="tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "unnamed"]


def test_what_is_no_saved_cache(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name in ("absent", "file", "folder"):
        with pytest.raises(ValueError, match=rf"{name} is not a saved cache: there is no cache.json in it\."):
            kv.load_cache(tmp_path / name)
    for text in ("[]", "{}"):
        (tmp_path / "folder" / "cache.json").write_text(text)
        with pytest.raises(ValueError, match="its cache.json is not one that save_cache writes"):
            kv.load_cache(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"gs://bucket/clip is no folder on a file system"):
        kv.load_cache("gs://bucket/clip")


def test_another_format(saved):
    index = json.loads((saved / "cache.json").read_text())
    (saved / "cache.json").write_text(json.dumps(index | {"format": FORMAT + 1, "acckv_jax": "9.1"}))
    with pytest.raises(ValueError, match=f"format {FORMAT + 1}, saved by acckv_jax 9.1; this .* reads format {FORMAT}"):
        kv.load_cache(saved)


def test_damaged_files_are_named(saved):
    paths = [path for path in saved.rglob("*") if path.is_file() and path.stat().st_size]
    assert sum(path.stat().st_size for path in paths) > 10_000 and saved / "cache.json" in paths
    for path in paths:
        whole = path.read_bytes()
        middle = len(whole) // 2
        for damaged in (
            whole[:-1],
            whole[:middle],
            b"",
            whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{path.name} is damaged: remove the folder and save the cache again"):
                kv.load_cache(saved)
        path.unlink()
        with pytest.raises(ValueError, match=f"{path.name} cannot be read: No such file|there is no cache.json in it"):
            kv.load_cache(saved)
        path.write_bytes(whole)
    kv.load_cache(saved)


def test_a_changed_index_is_damaged(saved):
    index = (saved / "cache.json").read_text()
    (saved / "cache.json").write_text(index.replace('"reserved_slots": 16', '"reserved_slots": 17'))
    with pytest.raises(ValueError, match="cache.json is damaged"):
        kv.load_cache(saved)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_nothing_is_overwritten(small, tmp_path, kind):
    path = tmp_path / "clip"
    {"folder": path.mkdir, "file": path.touch, "link": lambda: path.symlink_to(tmp_path / "nowhere")}[kind]()
    with pytest.raises(ValueError, match="clip exists already: choose another folder, or remove it"):
        kv.save_cache(path, small[2])
    assert [one.name for one in tmp_path.iterdir()] == ["clip"]


def test_what_a_kill_left_is_replaced(small, tmp_path):
    (tmp_path / ".clip.partial" / "arrays").mkdir(parents=True)
    (tmp_path / ".clip.partial" / "arrays" / "torn").write_text("x")
    kv.save_cache(tmp_path / "clip", small[2])
    assert [one.name for one in tmp_path.iterdir()] == ["clip"] and not (tmp_path / "clip" / "arrays" / "torn").exists()
    assert_equal(kv.load_cache(tmp_path / "clip"), small[2])


def test_where_nothing_can_be_written(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="the cache cannot be written to .*file/clip: Not a directory"):
        kv.save_cache(tmp_path / "file" / "clip", small[2])
    with pytest.raises(ValueError, match="the cache cannot be written to /proc/clip: No such file or directory"):
        kv.save_cache("/proc/clip", small[2])


@pytest.mark.packaging
def test_a_full_disk_leaves_nothing(tmp_path):
    """Files may only grow to a limit: the first ones of Orbax fail, then its arrays."""
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"the cache cannot be written to {tmp_path / 'clip'}: File too large. []"] * 2, done.stderr
    for line in lines[2:]:  # several arrays fail at once, and Orbax raises whichever was first
        assert re.fullmatch(rf"the cache cannot be written to {tmp_path}/clip: \w.{{5,800}}\. \[\]", line), done.stderr
    assert len(lines) == 3


def test_what_cannot_be_saved(small, tmp_path):
    decoder, params, state = small
    for other in (params, state.cache.stacks[0], None):
        with pytest.raises(ValueError, match="takes a KVCache, a DecodeState, a Scored or a Generation, and not a "):
            kv.save_cache(tmp_path / "clip", other)
    with pytest.raises(ValueError, match="call it outside jit"):
        jax.jit(lambda state: kv.save_cache(tmp_path / "clip", state))(state)
    donated = jax.tree.map(jnp.copy, state)
    kv.jitted.decode(decoder, params, donated, kv.Knorm(budget=0.5), steps=1)
    with pytest.raises(ValueError, match=r"cache.stacks.0.k was donated .*: save the state that the function returned"):
        kv.save_cache(tmp_path / "clip", donated)
    own = dataclasses.replace(state.cache.stacks[0], k=object())
    with pytest.raises(ValueError, match="stacks.0.k is a object, which save_cache cannot store"):
        kv.save_cache(tmp_path / "clip", dataclasses.replace(state.cache, stacks=(own,)))
    assert list(tmp_path.iterdir()) == []


def test_without_orbax(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax", None)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'acckv-jax\[checkpoint\]'"):
        kv.save_cache(tmp_path / "clip", small[2])
    with pytest.raises(ImportError, match=r"pip install 'acckv-jax\[checkpoint\]'"):
        kv.load_cache(tmp_path / "clip")


def test_the_format_of_these_fields_is_1():
    """A change here is another FORMAT."""
    fields = {name: " ".join(field.name for field in dataclasses.fields(kind)) for name, kind in CLASSES.items()}
    assert FORMAT == 1 and fields == {
        "KVCache": "stacks length delta",
        "LayerCache": "k v index modality valid multiplicity mass budget next_slot finite recent_queries "
        "reserved_slots",
        "QuantizedSlots": "codes scale zero free per_channel",
        "DecodeState": "cache token active key",
        "Scored": "cache sums inputs queries window complete",
        "QuerySet": "rows last weight exclude_diagonal reduce",
        "Generation": "tokens num_tokens cache_bytes kept state",
        "CacheBytes": "prompt reserved metadata",
    }
