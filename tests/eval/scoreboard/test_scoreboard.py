"""The command at smoke size: files, what they hold, and mistakes."""

import csv
import json
from html.parser import HTMLParser

import pytest

from eval.held_out import HeldOutClips
from eval.scoreboard.__main__ import Options, main, run, tables_of
from eval.scoreboard.suite import SUITES, Entry
from eval.tasks.clips import Clips


class Text(HTMLParser):
    """Text and tags of a page; fails where tags do not close."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory):
    task = Clips(small_model, HeldOutClips.load(small_model.encoders))
    out = tmp_path_factory.mktemp("scoreboard")
    for _ in range(2):  # the second time continues, and changes nothing
        run(Options(out, suite="smoke"), load=lambda *_: task)
    return out


@pytest.mark.complete
def test_files(folder):
    result = json.loads((folder / "scoreboard.json").read_text())
    whole = [line for line in result["lines"] if line["group"] == "all"]
    assert [(line["policy"], line["turn"]) for line in whole] == [
        (policy, turn) for turn in ("first", "later") for policy in ("full", "random", "snapkv", "acckv")
    ]
    for line in whole:
        equal = {"full": 1, "random": 0.2, "snapkv": 0.2}  # AccKV's gate leaves slots empty
        assert line["share"] == pytest.approx(equal.get(line["policy"], line["share"]), abs=0.01) and line["share"] > 0
    assert {one["rival"] for one in result["comparisons"]} == {"random", "snapkv"}
    assert result["overlap"]["policies"] == ["random", "snapkv", "acckv"]
    assert result["about"]["packages"]["jax"]
    assert [clip["policy"] for clip in result["clip"]["policies"]] == ["random", "snapkv", "acckv"]
    claims = {claim["number"]: claim for claim in result["claims"]}
    assert list(claims) == ["i", "v"] and len(claims["i"]["numbers"]) == 2
    kept, tokens = result["clip"]["policies"][0]["kept"]["text"]
    assert kept == tokens > 0
    table = list(csv.DictReader((folder / "scoreboard.csv").read_text().splitlines()))
    assert len(table) == len(result["lines"])
    answers = (folder / "clips.jsonl").read_text().splitlines()
    assert len(answers) == len(set(answers))


@pytest.mark.complete
def test_the_report_needs_no_network_and_says_what_is_measured(folder):
    page = Text((folder / "report.html").read_text())
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img")
        fetched = [value for name, value in attributes.items() if name in ("src", "href", "xlink:href", "action")]
        assert all(f"{value}".startswith(("#", "data:")) for value in fetched)
    for words in ("first question", "later questions", "snapkv", "to full cache", "How far policies choose the same"):
        assert words in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 3 + 1 + 3
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--suite", "none"], "Unknown suite 'none'; choose one of default, text, smoke."),
        (["--suite", "smoke", "--policies", "snapkw"], "unknown policy 'snapkw'"),
        (["--suite", "smoke", "--budgets", "no"], "Budget 'no' is no number"),
    ],
)
def test_mistakes(arguments, sentence, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--suite", "smoke", "--out", str(tmp_path / "file")]) == 2
    assert "file is no folder; name another --out." in capsys.readouterr().err


def test_entries_of_a_table_are_asked_together():
    entries = [Entry("clips", 2), Entry("clips", 2, first=5, title="others"), Entry("clips", 2, budgets=("0.3",))]
    assert tables_of(entries) == {("clips", 0, 2, ""): entries[::2], ("clips", 5, 2, "others"): [entries[1]]}
    with pytest.raises(ValueError, match="Entries of one title must be about the same examples: clips, clips"):
        tables_of([Entry("clips", 2), Entry("clips", 3)])
    for suite in SUITES.values():
        tables_of(suite)
