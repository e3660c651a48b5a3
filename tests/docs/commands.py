"""Commands in the pages: those of ```bash blocks, and those between backticks in a sentence."""

import dataclasses
import re
import shlex
from pathlib import Path

from tests.docs.pages import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "models/**/README.md", "train/**/README.md")
NEEDS = ("cloud account", "gpu", "hours", "kvpress")
"""What a page may say that a block or paragraph needs, in a comment just above it: <!-- needs: gpu -->."""

PROGRAMS = frozenset(
    "python python3 python3.11 pytest pip ruff bash source for gcloud gsutil kubectl xpk docker sbatch srun ssh scp "
    "curl git npm pre-commit sphinx-build".split()
)
MARK = re.compile(r"<!--\s*needs:\s*(.*?)\s*-->")
FENCE = re.compile(r"^\s*(`{3,}|:{3,})\s*([^`]*)$")
SHELLS = ("bash", "sh", "shell", "console", "zsh")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as a page has it, in one line, without comments; and what the page says that it needs."""

    page: str
    text: str
    needs: str | None = None


def all_commands() -> list[Command]:
    """Those of all pages."""
    paths = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    return [command for path in paths for command in commands(path.relative_to(ROOT).as_posix(), path.read_text())]


def commands(page: str, text: str) -> list[Command]:
    """The commands of a page.

    Raises:
        ValueError: if a mark names something that is not in `NEEDS`.
    """
    found: list[Command] = []
    paragraph: list[str] = []
    needs, kind, fence = None, None, ""
    for line in [*text.splitlines(), ""]:
        opening = FENCE.match(line)
        if kind is not None:  # inside a fence
            if line.strip() == fence:
                if kind in SHELLS:
                    found += [Command(page, one, needs) for one in split("\n".join(paragraph))]
                needs, kind, paragraph = None, None, []
            else:
                paragraph.append(line)
        elif opening or not line.strip() or MARK.fullmatch(line.strip()):
            found += [Command(page, one, needs) for one in inline("\n".join(paragraph))]
            needs, paragraph = (None if paragraph else needs), []
            if opening:
                fence, kind = opening[1], opening[2].strip().split(" ")[0]
            elif mark := MARK.fullmatch(line.strip()):
                needs = mark[1]
                if needs not in NEEDS:
                    raise ValueError(f"{page}: the mark 'needs: {needs}' is none of {', '.join(NEEDS)}.")
            else:
                needs = None  # a mark stands directly before what it marks
        else:
            paragraph.append(line)
    return found


def split(block: str) -> list[str]:
    """The commands of a shell block: lines, with continued ones and loops as one."""
    found, open_line, loops = [], "", 0
    for line in block.replace("\\\n", " ").splitlines():
        words = _words(line)
        if words is None and not open_line:  # a quote that ends on a later line
            open_line = line
            continue
        if open_line:
            open_line += "\n" + line
            words = _words(open_line)
            if words is None:
                continue
            line, open_line = open_line, ""
        if not words:
            continue
        text = " ".join(_without_comment(line).split())
        if loops or words[0] == "for":
            found[-1:] = [f"{found[-1]}; {text}"] if loops else [*found[-1:], text]
            loops += len(re.findall(r"\bfor\b \w+ in", text)) - len(re.findall(r"\bdone\b", text))
        else:
            found.append(text.removeprefix("$ "))
    return found


def inline(paragraph: str) -> list[str]:
    """Spans of code that begin with a program, or with variables and a program."""
    found = []
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", paragraph):
        words = (_words(" ".join(span.split())) or [""])[:]
        while words and re.fullmatch(r"[A-Z_0-9]+=\S*", words[0]):
            words.pop(0)
        if len(words) > 1 and (Path(words[0]).name in PROGRAMS or words[0].endswith(".sh")):
            found.append(" ".join(span.split()))
    return found


def _words(line: str) -> list[str] | None:
    """Words of a shell line without its comment; None while a quote is open."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return None


def _without_comment(line: str) -> str:
    for at in [match.start() for match in re.finditer(r"(?:^|\s)#", line)]:
        if _words(line[:at]) is not None:
            return line[:at]
    return line


def calls(command: Command) -> list[tuple[str, list[str]]]:
    """The Python programs that a command runs, and their arguments: [("eval.answer", ["clip.mp4", ...])]."""
    found = []
    for part in re.split(r"&&|;|\|", command.text):
        words = _words(part) or []
        for at in range(len(words) - 2):
            if re.fullmatch(r"python[\d.]*", Path(words[at]).name) and words[at + 1] == "-m":
                found.append((words[at + 2], words[at + 3 :]))
                break
    return found
