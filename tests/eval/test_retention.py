"""The page of what policies keep of a clip."""

import numpy as np
import pytest

from eval.retention import Options, main, run
from models.media.clip_writer import write_clip


@pytest.fixture
def clip(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 80, 3)).astype(np.uint8)
    write_clip(tmp_path / "clip.mp4", frames, 1, np.sin(np.arange(48000) / 8).astype(np.float32) / 4)
    return tmp_path / "clip.mp4"


def test_the_page_shows_the_clip_and_every_policy(small_model, clip, tmp_path, capsys):
    out = tmp_path / "page.html"
    options = Options(f"{clip}", "What is <shown>?", ("random", "acckv:merge=none"), "0.5", out=out)
    run(options, load=lambda _: small_model)
    assert capsys.readouterr().out.strip() == f"{out}"
    page = out.read_text()
    assert page.count("<svg") == 3 and page.count("<details") == 2
    assert "What is kept of clip.mp4" in page and "acckv:merge=none: keeps" in page
    assert "“What is &lt;shown&gt;?”" in page and "<script" not in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["clip.mp4"], "No question was asked; write it after the clip, in quotes."),
        (["none.mp4", "What?"], "none.mp4"),
        (["clip.mp4", "What?", "--policies", "snapkw"], "unknown policy 'snapkw'"),
        (["clip.mp4", "What?", "--budget", "no"], "Budget 'no' is no number"),
    ],
)
def test_mistakes(arguments, sentence, clip, monkeypatch, capsys):
    monkeypatch.chdir(clip.parent)
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not (clip.parent / "retention.html").exists()
