"""What a transfer adds to the joint step: tiny networks timed, and compiled ahead of time for virtual devices."""

import json
from collections.abc import Iterator

import pytest

from eval.perf.mergenet import main
from tests.train.mergenet import tiny

SMALL = ["--source", "tiny_resnet", "--target", "tiny_resnet", "--target-path", "classifier/kernel"]
SMALL += ["--preset", "plus", "--classes", "10", "--batch", "8", "--steps", "2"]
"""What compiles fastest."""


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    tiny.register()
    yield
    tiny.unregister()


@pytest.mark.complete
def test_times(capsys):
    assert main([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["source"], found["batch"], found["cycle"], found["topology"]) == ("tiny_resnet", 8, 2, None)
    assert min(found[name] for name in ("without", "transferring", "between")) > 0  # which is more is chance
    assert found["with"] == pytest.approx((found["transferring"] + found["between"]) / 2)
    assert found["overhead"] == pytest.approx(found["with"] / found["without"] - 1)
    assert found["work"] == pytest.approx(found["with"] / found["between"] - 1)


@pytest.mark.complete
def test_a_transfer_in_every_step_has_none_between(capsys):
    assert main([*SMALL, "--cycle", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "between" not in found and found["work"] is None
    assert found["with"] == found["transferring"]


@pytest.mark.complete
def test_memory(capsys):
    assert main([*SMALL, "--topology", "cpu:8", "--mesh", "data=4,fsdp=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"data": 4, "fsdp": 2} and found["memory"] is None
    without, added = found["without"], found["with"]
    assert without["fits"] and added["fits"]
    assert added["arguments"] > without["arguments"] and added["flops"] > without["flops"]
    assert added["donated"] > without["donated"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--source", "vgg"], "There is no classifier 'vgg'; choose one of resnet18,"),
        (["--preset", "best"], "There is no preset 'best'; choose one of authors_code, paper, plus."),
        (["--cycle", "3"], "--steps at least --cycle"),
        (["--target-path", "nowhere"], "no parameter is named 'nowhere'"),
        (["--topology", "cpu:8", "--mesh", "data=3"], "cpu:8 has 8 devices, but --mesh data 3 is 3."),
        (["--topology", "cpu:8", "--batch", "12"], "--batch 12 cannot be divided over 8 shards"),
        (["--mesh", "data=8"], "--mesh is for --topology"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys):
    assert main([*SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
