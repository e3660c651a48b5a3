"""The report's summary: who is best at a tenth of the bytes."""

from eval.scoreboard.report import _summary


def line(policy, share, value, *, lower_is_better=False):
    to_full = None if policy == "full" else {"value": value - 0.5, "low": None, "high": None}
    score = {"value": value, "low": None, "high": None}
    return {"policy": policy, "share": share, "score": score, "to_full": to_full, "lower_is_better": lower_is_better}


def test_the_best_at_a_tenth_of_the_bytes():
    lines = [
        line("full", 1.0, 0.5),
        line("snapkv", 0.1, 0.4),
        line("snapkv", 0.05, 0.1),
        line("quantized(snapkv)", 0.1, 0.45),
        line("only_at_more", 0.2, 0.5),
    ]
    errors = [line(one["policy"], one["share"], 1 - one["score"]["value"], lower_is_better=True) for one in lines]
    tasks = [{"title": "a", "rows": [(one, []) for one in own]} for own in (lines, errors)]
    found = _summary(tasks)
    assert found["best"] == "quantized(snapkv)"
    assert [name for name, _ in found["rows"]] == ["full", "quantized(snapkv)", "snapkv"]
    assert [own["score"]["value"] for own in found["rows"][2][1]] == [0.4, 0.6]


def test_no_summary_where_bytes_were_not_measured():
    assert _summary([{"title": "a", "rows": [(line("full", None, 0.5), []), (line("snapkv", None, 0.4), [])]}]) == {
        "columns": [],
        "rows": [],
        "best": None,
    }
