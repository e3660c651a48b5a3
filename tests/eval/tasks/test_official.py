"""Official benchmarks: what is read of folders of their form, what is asked, and what is said about wrong folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from acckv_jax import Modality
from eval.benchmark import Options, main, measure, summary
from eval.tasks.avhbench import AVHBench
from eval.tasks.avsd import Avsd
from eval.tasks.daily_omni import DailyOmni
from eval.tasks.letters import leading_letter, yes_or_no
from eval.tasks.music_avqa import plain
from eval.tasks.mvbench import CLIPS, MVBench
from eval.tasks.official import OfficialTask
from eval.tasks.registry import TASKS
from eval.tasks.video_mme import VideoMME
from models.errors import UserError
from models.registry import load
from tests.eval.tasks import folders
from tests.eval.tasks.letters import LetterModel
from tests.models.qwen2_5_omni.checkpoints import write_omni
from tests.tiers import quick_first

OFFICIAL = [name for name, task in TASKS.items() if issubclass(task, OfficialTask)]
REAL = Path(__file__).parent / "music_avqa"

PROMPTS = {
    "music_avqa": (
        "How many musical instruments were heard throughout the video?\n"
        "Answer the question using a single word or phrase."
    ),
    "avsd": "what does he hold ?",
    "mvbench": (
        "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
        "objects, and the action and pose of persons. Based on your observations, select the best option that "
        "accurately addresses the question.\nQuestion: Action Sequence?\nOptions:\n(A) one\n(B) two\n(C) three\n"
        "Only give the best option."
    ),
    "worldsense": (
        "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
        "option that accurately addresses the question.\nThese are the frames of a video and the corresponding audio. "
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nQuestion: What is heard?\nA. A bell.\nB. A dog.\nC. Rain.\n"
        "Answer: "
    ),
    "daily_omni": (
        "Your task is to accurately answer multiple-choice questions based on the given video.\n"
        "Select the single most accurate answer from the given choices.\nQuestion: What is heard first?\n"
        "Choices: ['A. A bell', \"B. A dog's bark\", 'C. Rain', 'D. Wind']\n"
        "Your answer should be a capital letter representing your choice: A, B, C, or D. Don't generate any other text."
    ),
    "video_mme": (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nHow many?\nA. 1.\nB. 2.\nC. 3.\nD. 4.\nThe best answer is:"
    ),
    "avhbench": "Is the dog making sound in the audio?",
    "omnivideobench": (
        "You are given a video. Based on the content of the video, answer the following question:\n\n"
        "Question:\nHow many barks?\n\nOptions:\nA.One\nB.Two\nC.Three\nD.Four\n\n"
        "Answer with the option's letter directly(e.g., A, B, C, or D).If your access to the video content is limited, "
        "at least one option that is more likely than the others must be chosen."
        "Mustn't give any other reason for can not choose!"
    ),
}
"""The first question of each folder, as the authors' programs would ask it."""

FIRST = {
    "music_avqa": ("video/a.mp4", ("two",), "Audio Counting", {"scenario": "Audio"}),
    "avsd": ("videos/A1.mp4", ("he holds a cup .", "a cup"), "dialogue", {"turns": 3}),
    "mvbench": ("video/star/Charades_v1_480/a.mp4@1-3", ("B",), "Action Sequence", {}),
    "worldsense": (
        "videos/v1.mp4",
        ("B",),
        "Recognition",
        {"task_type": "Audio Recognition", "domain": "Music", "duration": "<1min", "audio_class": "Music, Event"},
    ),
    "daily_omni": ("Videos/x/x_video.mp4", ("B",), "Event Sequence", {"category": "Music", "duration": "30s"}),
    "video_mme": (
        "data/s_1.mp4",
        ("A",),
        "short",
        {"domain": "Knowledge", "sub_category": "Geography", "task_type": "Counting Problem"},
    ),
    "avhbench": ("videos/00191.mp4", ("yes",), "Video-driven Audio Hallucination", {}),
    "omnivideobench": ("videos/video_1.mp4", ("B",), "Sound", {"question_type": "counting", "video_type": "Vlog"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of every benchmark."""
    root = tmp_path_factory.mktemp("benchmarks")
    for name, write in folders.FOLDERS.items():
        write(root / name)
    return root


def read(name, folder):
    """A task without a model."""
    return TASKS[name](LetterModel(), folder, TASKS[name].benchmark.read(folder))


def test_every_official_task_has_a_folder():
    assert [*folders.FOLDERS] == [*PROMPTS] == [*FIRST] == OFFICIAL, (
        "each official task has an entry of FOLDERS in folders.py, and of PROMPTS and FIRST here, in the order of TASKS"
    )


@pytest.mark.parametrize("name", OFFICIAL)
def test_what_is_asked(made, name):
    task = read(name, made / name)
    id, references, group, labels = FIRST[name]
    assert task.ids[0] == id
    first, question = task.clips[id][0], task._question(task.clips[id][0], {"sound": "yes"})
    assert question.text == PROMPTS[name]
    assert (question.references, question.group) == (references, group)
    assert question.labels == labels | {"sound": "yes"} and question.choices == first.choices
    assert all(task.score(answer, question) == 1 for answer in references)
    assert task.score("I cannot tell", question) < 0.3


def test_questions_of_a_clip_are_together(made):
    clips = read("daily_omni", made / "daily_omni").clips
    asked = {id: [(one.question, one.references[0]) for one in questions] for id, questions in clips.items()}
    assert asked == {
        "Videos/x/x_video.mp4": [("What is heard first?", "B"), ("What is heard first?", "D")],
        "Videos/y/y_video.mp4": [("What is heard first?", "A")],
    }


def test_files_of_a_benchmark_take_turns(made, tmp_path):
    for file in (made / "mvbench/json").iterdir():
        [entry] = json.loads(file.read_text())
        twice = [entry, entry | {"video": "b.mp4"}]
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / "json" / file.name).write_text(json.dumps(twice))
    (tmp_path / "video").symlink_to(made / "mvbench/video")
    clips = MVBench.benchmark.read(tmp_path)
    assert [id.split("/")[-1][0] for id in clips] == [*"aaaaabbbbb"]
    assert [one.group for asked in [*clips.values()][:5] for one in asked] == [
        "Action Sequence",
        "Action Prediction",
        "Object Interaction",
        "Unexpected Action",
        "Object Shuffle",
        "Action Count",
        "State Change",
        "Character Order",
        "Action Localization",
        "Scene Transition",
    ]


def test_parts_of_clips(made):
    clips = read("mvbench", made / "mvbench").clips
    spans = {one.group: one.span for asked in clips.values() for one in asked}
    assert [task for task, span in spans.items() if span == (1.0, 3.0)] == [
        "Action Sequence",
        "Action Prediction",
        "Object Interaction",
        "Action Localization",
    ]
    assert set(spans) == set(CLIPS) and set(spans.values()) == {(1.0, 3.0), None}


@pytest.mark.parametrize(
    ("start", "end", "span"), [(3.0, 1.0, (1.0, 3.0)), (2.0, 2.0, (2.0, 3.0)), (-1, 2, (0.0, 2.0))]
)
def test_odd_parts_as_videollama2_takes_them(made, tmp_path, start, end, span):
    shutil.copytree(made / "mvbench", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "json/action_sequence.json"
    path.write_text(json.dumps([entry | {"start": start, "end": end} for entry in json.loads(path.read_text())]))
    first = next(iter(MVBench.benchmark.read(tmp_path).values()))[0]
    assert first.span == span


def test_other_suffixes(made, tmp_path):
    shutil.copytree(made / "video_mme", tmp_path, dirs_exist_ok=True)
    (tmp_path / "data/l_1.mp4").rename(tmp_path / "data/l_1.MP4")
    (tmp_path / "data/s_1.mp4").unlink()
    assert len(VideoMME.benchmark.read(tmp_path)) == 2


def test_a_dialogue_is_the_models_own_chat(made):
    task = read("avsd", made / "avsd")
    first, second = (task._question(asked[0], {}) for asked in task.clips.values())
    whole = "is it a man ?yes , it is a man does he speak ?no , he is silent what does he hold ?"
    assert _letters(task.prompt([first])) == _letters(task.model.encode_question(whole))
    assert _letters(task.prompt([second])) == _letters(task.model.encode_question("is there sound ?"))
    after = task.prompt([first, second])
    assert _letters(after) == _letters(task.model.encode_question("he holds a cup . is there sound ?"))


def _letters(prompt):
    return np.concatenate([np.asarray(buffer) for buffer in prompt.buffers])[prompt.rows].tolist()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: None, "This task reads qa.json and clips: name its folder with --data (docs/tasks.md"),
        (lambda folder: folder / "no", "/no (docs/tasks.md describes it)."),
        (lambda folder: (folder / "qa.json").unlink() or folder, "qa.json; docs/tasks.md describes the folder"),
        (lambda folder: _write(folder, "[{"), "qa.json is not readable JSON ("),
        (lambda folder: _write(folder, "[]"), "qa.json is no list with something in it; docs/tasks.md says"),
        (lambda folder: _write(folder, "{}"), "qa.json is no list with something in it"),
        (lambda folder: _write(folder, '[{"Question": "?"}]'), "qa.json, entry 1 has no 'video_id'; docs/tasks.md"),
        (lambda folder: _change(folder, Answer="E"), "qa.json, entry 2, 'Answer' is 'E', and not one of 'A', 'B', 'C'"),
        (lambda folder: _change(folder, Choice="A"), "qa.json, entry 2, 'Choice' is no list with something in it"),
        (lambda folder: _change(folder, Choice=[1]), "qa.json, entry 2, 'Choice', entry 1 is no text with"),
        (lambda folder: _change(folder, Type=None), "qa.json, entry 2, 'Type' is no text with something in it"),
        (
            lambda folder: (folder / "Videos").rename(folder / "videos2") and folder,
            "None of the 2 clips is there, such",
        ),
    ],
)
def test_wrong_folders_are_one_sentence(made, tmp_path, capsys, monkeypatch, change, sentence):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "daily_omni", tmp_path / "data")
    folder = change(tmp_path / "data")
    assert main(["--task", "daily_omni", *([] if folder is None else ["--data", f"{folder}"])]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err.splitlines()[-1] and "Traceback" not in shown.err


def _write(folder, text):
    (folder / "qa.json").write_text(text)
    return folder


def _change(folder, **values):
    entries = json.loads((folder / "qa.json").read_text())
    entries[1] |= values
    return _write(folder, json.dumps(entries))


def test_other_wrong_annotations(made, tmp_path):
    for name in ("music_avqa", "avsd"):
        shutil.copytree(made / name, tmp_path / name)
    path = tmp_path / "music_avqa/avqa-test.json"
    path.write_text(path.read_text().replace('[\\"left\\", \\"drum\\"]', '[\\"left\\"]'))
    with pytest.raises(UserError, match=r"entry 2, 'templ_values' must be 2 texts, not \[\"left\"\]"):
        TASKS["music_avqa"].benchmark.read(tmp_path / "music_avqa")
    path = tmp_path / "avsd/test_set4DSTC10-AVSD_multiref+reason.json"
    path.write_text(path.read_text().replace("yes there is", "__UNDISCLOSED__"))
    with pytest.raises(UserError, match="has no answer but __UNDISCLOSED__; take the file with the references"):
        Avsd.benchmark.read(tmp_path / "avsd")


def test_fifty_real_questions_of_music_avqa(tmp_path):
    (tmp_path / "video").mkdir()
    (tmp_path / "video/00000093.mp4").touch()
    (tmp_path / "avqa-test.json").write_bytes((REAL / "avqa-test.json").read_bytes())
    task = read("music_avqa", tmp_path)
    questions = [task._question(one, {}) for asked in task.clips.values() for one in asked]
    assert len(questions) == 50 and len(task.ids) == 49
    assert not [q.text for q in questions if set(q.text) & set("<>_\uff1f")]
    assert len({q.group for q in questions}) == 9
    real = {q.text.partition("\n")[0]: q.references for q in questions}
    assert real["Is the violin in the video always playing?"] == ("no",)
    assert real["How many sounding violin in the video?"] == ("three",)
    for question in questions:
        [right] = question.references
        for said in (right, right.upper() + ".", right.capitalize(), right.replace(" ", "_")):
            assert task.score(said, question) == 1
        assert task.score(f"It is {right}", question) == task.score(right + "s", question) == 0


@pytest.mark.parametrize(
    ("answer", "word"), [("2", "two"), ("Two.", "two"), ("12", "12"), ("Acoustic_guitar", "acoustic guitar"), ("", "")]
)
def test_plain_words(answer, word):
    assert plain(answer) == word


def test_figures_of_yes_and_no():
    rng = np.random.default_rng(0)
    said, right = rng.choice(["Yes.", "No, it is not.", "Perhaps"], 60), rng.choice(["yes", "no"], 60)
    rows = [{"answer": a, "references": [b]} for a, b in zip(said.tolist(), right.tolist(), strict=True)]
    yes, true = said == "Yes.", right == "yes"
    precision, recall = (yes & true).sum() / yes.sum(), (yes & true).sum() / true.sum()
    found = AVHBench.figures(rows)
    assert found == pytest.approx(
        {
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "yes": yes.mean(),
        }
    )
    assert AVHBench.figures([{"answer": "No", "references": ["no"]}]) == dict.fromkeys(found, 0.0)


def ask(task, name, path, **options):
    chosen = {"policies": ("snapkv",), "budgets": ("0.6",)} | options
    return measure(Options(name, **chosen), path, lambda *_: task)


def test_a_run_with_a_clip_that_cannot_be_read(small_model, made, tmp_path):
    """SmolAV: two questions of one clip follow each other too, and broken and missing clips are rows."""
    shutil.copytree(made / "daily_omni", tmp_path, dirs_exist_ok=True)
    (tmp_path / "Videos/y/y_video.mp4").write_bytes(b"")
    entries = json.loads((tmp_path / "qa.json").read_text())
    _write(tmp_path, json.dumps([*entries, entries[0] | {"video_id": "z"}]))
    task = DailyOmni(small_model, tmp_path, DailyOmni.benchmark.read(tmp_path))
    measured = ask(task, "daily_omni", tmp_path / "answers.jsonl")
    assert {id: error.partition(";")[0] for id, error in measured.errors.items()} == {
        "Videos/y/y_video.mp4": f"{tmp_path}/Videos/y/y_video.mp4 is empty (0 bytes)",
        "Videos/z/z_video.mp4": f"There is no file {tmp_path}/Videos/z/z_video.mp4",
    }
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()[1:]]
    answers = [row for row in rows if "error" not in row]
    assert [(row["policy"], row["turn"], row["group"]) for row in answers] == [
        (policy, *asked)
        for policy in ("full", "snapkv")
        for asked in ((1, "Event Sequence"), (2, "Reasoning"), (1, "Reasoning"), (2, "Event Sequence"))
    ]
    for row in answers:
        assert row["score"] == (leading_letter(row["answer"]) in row["references"])
        assert row["labels"] == {"category": "Music", "duration": "30s", "sound": "yes"}
    by_label = summary(measured, "duration")["rows"][0]
    assert by_label["groups"]["30s"] == by_label["all"] and by_label["all"]["asked"] == 2
    with pytest.raises(UserError, match="--by weather: there is no such label; answers have category, duration, sound"):
        summary(measured, "weather")


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    return load(str(write_omni(tmp_path_factory.mktemp("omni"))))


def test_sound_reaches_the_model(omni, made, tmp_path):
    """And a part of a clip has as many frames and as much sound as a clip of its length."""
    shutil.copytree(made / "mvbench", tmp_path, dirs_exist_ok=True)
    silent = tmp_path / "video/FunQA_test/test/a.mp4"
    folders.clip(silent, sound=False)
    task = MVBench(omni, tmp_path, MVBench.benchmark.read(tmp_path))
    examples = {id: task.example(id) for id in task.ids[:3]}
    for id, example in examples.items():
        labels = example.conversations[0][0].labels
        heard, seconds = example.prefix.count(Modality.AUDIO), 2 if "@" in id else 3
        assert labels["sound"] == ("no" if "FunQA" in id else "yes")
        assert abs(heard - (0 if "FunQA" in id else 25 * seconds)) <= 2, id  # 25 tokens a second
    part, *whole = (example.prefix.count(Modality.VIDEO) for example in examples.values())
    assert whole == [part * 3 // 2] * 2  # pairs of frames, one a second


@pytest.mark.parametrize("name", quick_first(OFFICIAL, 0))
def test_every_benchmark_runs(omni, made, tmp_path, name):
    """A tiny Qwen2.5-Omni, all the way to the summary."""
    task = TASKS[name](omni, made / name, TASKS[name].benchmark.read(made / name))
    result = summary(ask(task, name, tmp_path / "answers.jsonl", policies=("acckv",), budgets=("0.9",)))
    assert result["errors"] == {} and result["examples"] == len(task.ids)
    full = result["rows"][0]
    assert full["all"]["asked"] == sum(map(len, task.clips.values()))
    if name == "avhbench":
        answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()[1:]]
        mine = [row for row in answers if row["policy"] == "full" and row["turn"] == 1]
        assert full["all"]["yes"] == pytest.approx(np.mean([yes_or_no(row["answer"]) == "yes" for row in mine]))
