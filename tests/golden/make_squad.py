"""Makes squad_metrics.json beside this file; README.md says what it is.

python -m tests.golden.make_squad CHECKOUT
"""

import importlib.util
import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
WORDS = (
    "the",
    "a",
    "An",
    "cat",
    "Cat's",
    "dog",
    "the-dog",
    "1,000",
    "café",
    "Zürich",
    "...",
    "theory",
    "in",
    "the\u00a0sea",
)
QUESTIONS = 150


def main() -> None:
    spec = importlib.util.spec_from_file_location("official", Path(sys.argv[1]) / "evaluate-v2.0.py")
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)
    rng = random.Random(0)

    def text(least: int) -> str:
        return rng.choice((" ", "  ", ", ")).join(rng.choice(WORDS) for _ in range(rng.randint(least, 4)))

    questions = []
    for number in range(QUESTIONS):
        accepted = [text(1) for _ in range(rng.randint(0, 3))]
        answer = rng.choice([*accepted, text(0), text(0), ""])
        questions.append({"id": f"q{number}", "answer": answer, "accepted": accepted})
    asked = [{"id": q["id"], "answers": [{"text": text} for text in q["accepted"]]} for q in questions]
    data = [{"paragraphs": [{"qas": asked}]}]
    exact, f1 = official.get_raw_scores(data, {q["id"]: q["answer"] for q in questions})
    for question in questions:
        question |= {"exact": exact[question["id"]], "f1": f1[question["id"]]}
    has_answer = official.make_qid_to_has_ans(data)
    groups = {
        "": None,
        "has_answer_": [key for key in exact if has_answer[key]],
        "no_answer_": [key for key in exact if not has_answer[key]],
    }
    overall = {
        f"{group}{name}": value
        for group, keys in groups.items()
        for name, value in official.make_eval_dict(exact, f1, keys).items()
        if name != "total"
    }
    golden = json.dumps({"overall": overall, "questions": questions}, indent=0, ensure_ascii=True)
    (HERE / "squad_metrics.json").write_text(golden + "\n")


if __name__ == "__main__":
    main()
