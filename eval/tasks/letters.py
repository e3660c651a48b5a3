"""How benchmarks read the letter of a choice, or yes or no, out of an answer, as their authors' programs do.

All return the letter, or "" where they find none, which is a wrong answer.
"""

import re
from collections.abc import Sequence

OPENINGS = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
    "Answer:",
    "Option:",
)


def first_letter(answer: str, choices: Sequence[str] = ()) -> str:
    """The first capital A, B, C or D behind an opening such as "The best answer is".

    Without one, the only choice whose words stand in the answer.

    Source: Video-MME's eval_your_results.py (extract_characters_regex) and VLMEvalKit's worldsense.py and
    matching_util.py (can_infer_text). Two openings that a missing comma joins there are read as they are meant.
    """
    text = answer.strip()
    for opening in OPENINGS:
        text = text.replace(opening, "")
    if found := re.search("[ABCD]", text):
        return found[0]
    named = [choice[0] for choice in choices if choice[2:].strip(" .").lower() in answer.lower()]
    return named[0] if len(named) == 1 else ""


def leading_letter(answer: str, choices: Sequence[str] = ()) -> str:
    """The letter that an answer begins with, in either case.

    Source: Daily-Omni's test_model/Qwen2.5-Omni/testmodel.py.
    """
    found = re.match(r"\s*([A-D])", answer, re.IGNORECASE)
    return found[1].upper() if found else ""


def only_letter(answer: str, choices: Sequence[str] = ()) -> str:
    r"""A letter that is all of an answer but for punctuation; or stands before a full stop, or inside \boxed{}.

    Source: OmniVideoBench's utils.py (extract_model_answer, clean_text).
    """
    if boxed := re.search(r"[\\/]box(?:ed)?\{([^}]+)\}", answer):
        answer = boxed[1]
    answer = answer.strip()
    found = re.sub(r"[^\w\s]", "", answer[0] if answer[1:2] == "." else answer).strip().upper()
    return found if re.fullmatch("[A-D]", found) else ""


def first_word_letter(answer: str, choices: Sequence[str] = ()) -> str:
    """The letter that is the first word of the first line, with or without brackets or a full stop.

    Source: MVBench's mvbench.ipynb (check_ans). An empty answer is wrong here, and right there.
    """
    first = answer.strip().split("\n")[0].split(" ")[0].replace(".", "").upper()
    found = re.fullmatch(r"\(?([A-Z])\)?", first) or re.search(r"\(([A-Z])\)", first)
    return found[1] if found else ""


def yes_or_no(answer: str, choices: Sequence[str] = ()) -> str:
    """The first of the words yes and no: "yes" or "no"."""
    found = re.search(r"\b(yes|no)\b", answer.lower())
    return found[1] if found else ""
