import pickle

import numpy as np
import pytest

from models.media.waveform import SAMPLE_RATE
from tests.train.data.sources import PICTURES, sources
from train.data.clips import MARGIN, Clip, ClipConfig, PictureSpan, SoundSpan, clip_at
from train.data.questions import (
    ANSWERS,
    KINDS,
    PHRASINGS,
    Question,
    converse,
    draw_conversations,
    draw_questions,
    given_away,
    questions,
)
from train.data.sources import digits, instruments
from train.data.sources.items import Sources


@pytest.fixture(scope="module", name="sources")
def made_up() -> Sources:
    return sources()


CONFIGS = {
    "short": ClipConfig(seconds=(2, 5), items=(2, 5)),
    "long": ClipConfig(seconds=(10, 30), items=(2, 4), shortest=2, silent=0.3),
    "training": ClipConfig(seconds=(3, 12), items=(2, 5), augment=True),
}
BUSY = ClipConfig(seconds=(12, 40), items=(8, 30), repeats=True)


@pytest.fixture(scope="module", params=CONFIGS)
def clips(request, sources) -> list[Clip]:
    return [clip_at(7, i, sources, CONFIGS[request.param]) for i in range(150)]


def test_same_seed_same_clip(sources):
    config = CONFIGS["training"]
    first, again = clip_at(1, 5, sources, config), clip_at(1, 5, pickle.loads(pickle.dumps(sources)), config)
    assert first == again
    np.testing.assert_array_equal(first.audio(sources), again.audio(sources))
    assert len({clip_at(1, i, sources, config) for i in range(20)} | {clip_at(2, 5, sources, config)}) == 21


def test_timeline(clips, sources):
    for clip in clips:
        assert clip.pictures[0].start == 0 and clip.pictures[-1].end == clip.seconds
        for before, after in zip(clip.pictures, clip.pictures[1:], strict=False):
            assert before.end == after.start
        for span in clip.pictures:
            assert span.end > span.start
            assert PICTURES[sources.picture_labels[span.picture]] == span.name
        assert len({p.name for p in clip.pictures}) == len(clip.pictures)
        assert len({s.name for s in clip.sounds}) == len(clip.sounds) >= 1
        for sound in clip.sounds:
            around = [p for p in clip.pictures if p.start < sound.end and sound.start < p.end]
            assert len(around) == 1
            assert around[0].start + MARGIN - 1e-9 <= sound.start < sound.end <= around[0].end - MARGIN + 1e-9


def test_classes_return_but_not_twice_in_a_row(sources):
    clips = [clip_at(0, i, sources, BUSY) for i in range(30)]
    assert sum(len({p.name for p in clip.pictures}) < len(clip.pictures) for clip in clips) > 20
    for clip in clips:
        for kind in ("digit", "instrument"):
            names = [s.name for s in clip.sounds if s.kind == kind]
            assert all(a != b for a, b in zip(names, names[1:], strict=False))
        names = [p.name for p in clip.pictures]
        assert all(a != b for a, b in zip(names, names[1:], strict=False))


def test_configuration_is_kept(sources):
    for name, config in CONFIGS.items():
        clips = [clip_at(3, i, sources, config) for i in range(100)]
        assert {config.seconds[0], config.seconds[1]} <= {c.seconds for c in clips}, name
        assert {len(c.pictures) for c in clips} == set(range(config.items[0], config.items[1] + 1)), name
        assert min(p.end - p.start for c in clips for p in c.pictures) == config.shortest, name
        assert all((c.noise[0] > 0) == config.augment for c in clips), name
        assert any(len(c.sounds) < len(c.pictures) for c in clips), name


def test_picture_ids_follow_the_timeline(clips):
    clip = clips[0]
    assert len(clip.picture_ids) == clip.seconds
    for second in range(clip.seconds):
        (shown,) = [p.picture for p in clip.pictures if p.start <= second < p.end]
        assert clip.picture_ids[second] == shown


def test_audio_holds_each_sound_in_its_place(sources):
    for index in range(30):
        clip = clip_at(0, index, sources, CONFIGS["long"])
        wave = clip.audio(sources)
        assert wave.dtype == np.float32 and len(wave) == clip.seconds * SAMPLE_RATE
        silent = np.ones(len(wave), bool)
        for sound in clip.sounds:
            start, end = round(sound.start * SAMPLE_RATE), round(sound.end * SAMPLE_RATE)
            silent[start - 1 : end + 1] = False
            piece = wave[start:end]
            assert np.abs(piece).max() == pytest.approx(sound.gain, rel=0.02)
            assert ClipConfig().gain[0] <= sound.gain <= ClipConfig().gain[1]
            frequency = int(np.abs(np.fft.rfft(piece, SAMPLE_RATE)).argmax())
            names = digits.NAMES if sound.kind == "digit" else instruments.NAMES
            assert frequency == pytest.approx(200 + 100 * names.index(sound.name), abs=3)
            assert abs(piece[0]) < 0.01 and abs(piece[-1]) < 0.01
        assert not wave[silent].any()


def test_digits_are_never_cut(clips, sources):
    for clip in clips:
        for sound in clip.sounds:
            whole = sources.digits.lengths if sound.kind == "digit" else sources.instruments.lengths
            seconds = whole[sound.recording] / SAMPLE_RATE / sound.speed
            if sound.kind == "digit":
                assert sound.end - sound.start == pytest.approx(seconds)
            else:
                assert sound.end - sound.start <= seconds + 1e-9


def test_speed_changes_the_pitch(sources):
    sound = SoundSpan("instrument", 2, "piano", 0.1, 1.1, 0.5, speed=1.1)
    wave = Clip(2, (), (sound,)).audio(sources)
    piece = wave[int(0.1 * SAMPLE_RATE) : int(1.1 * SAMPLE_RATE)]
    assert int(np.abs(np.fft.rfft(piece)).argmax()) == pytest.approx(220, abs=2)


def answer_by_watching(question: Question, clip: Clip) -> list[str]:
    """Every word that would be a right answer, found from second-by-second observations and the question's words."""
    words = question.text.lower().rstrip("?").split()
    step = 0.01
    times = np.arange(0, clip.seconds, step)
    seen = [next((p.name for p in clip.pictures if p.start <= t < p.end), None) for t in times]
    heard = [next((s for s in clip.sounds if s.start <= t < s.end), None) for t in times]

    def in_order(names: list[str | None]) -> list[str]:
        order: list[str] = []
        for name in names:
            if name is not None and (not order or order[-1] != name):
                order.append(name)
        return order

    asks_number = words[1] == "number" or (words[:3] == ["what", "is", "the"] and "number" in words)
    asks_instrument = words[1] == "instrument" or (words[:3] == ["what", "is", "the"] and "instrument" in words)
    kinds = {"digit": asks_number, "instrument": asks_instrument}
    asked_sounds = [s.name if s is not None and kinds[s.kind] else None for s in heard]
    asked = in_order(asked_sounds if asks_number or asks_instrument else seen)
    everything = {*PICTURES, *digits.NAMES, *instruments.NAMES}
    if cues := [w for w in words if w in everything]:
        (cue,) = cues
        if asks_number or asks_instrument:
            return in_order([a for a, s in zip(asked_sounds, seen, strict=True) if s == cue])
        return in_order([p for p, s in zip(seen, heard, strict=True) if s is not None and s.name == cue])
    for position, word in enumerate(("first", "second", "third", "fourth")):
        if word in words:
            return [asked[position]]
    return [asked[-1]] if "last" in words else asked


@pytest.mark.parametrize("vary", [False, True])
def test_answers_are_true_and_unique(clips, sources, vary):
    rng = np.random.default_rng(0)
    for clip in [*clips[:30], *(clip_at(1, i, sources, BUSY) for i in range(5))]:
        for question in questions(clip, rng if vary else None):
            assert answer_by_watching(question, clip) == [question.answer], (question, clip)
            assert question.answer.isalpha() and question.answer.islower()


def test_every_phrasing_and_subkind_occurs(sources):
    rng = np.random.default_rng(0)
    found: dict[str, set[str]] = {}
    one = ClipConfig(seconds=(1, 2), items=(1, 1))
    clips = [clip_at(0, i, sources, config) for config in (CONFIGS["short"], one) for i in range(400)]
    for clip in clips:
        for question in questions(clip, rng, KINDS):
            (phrasing,) = [
                p
                for p in PHRASINGS[question.subkind]
                if question.text.startswith(p.split("{")[0]) and question.text.endswith(p.split("}")[-1])
            ][:1]
            found.setdefault(question.subkind, set()).add(phrasing)
    assert set(found) == set(PHRASINGS) == set(ANSWERS)
    assert sum(map(len, found.values())) >= 0.8 * sum(map(len, PHRASINGS.values()))


def test_questions_of_a_known_clip():
    clip = Clip(
        9,
        (PictureSpan(3, "cat", 0, 3), PictureSpan(8, "ship", 3, 6), PictureSpan(1, "car", 6, 9)),
        (
            SoundSpan("instrument", 0, "trumpet", 0.5, 1.5, 0.5),
            SoundSpan("digit", 0, "seven", 3.5, 4.0, 0.5),
        ),
    )
    assert {(q.kind, q.text, q.answer) for q in questions(clip)} == {
        ("video", "What is shown first?", "cat"),
        ("video", "What is shown second?", "ship"),
        ("video", "What is shown third?", "car"),
        ("video", "What is shown last?", "car"),
        ("audio", "Which number is spoken?", "seven"),
        ("audio", "Which instrument plays?", "trumpet"),
        ("audio_visual", "What is on screen while the trumpet plays?", "cat"),
        ("audio_visual", "Which instrument plays while the cat is shown?", "trumpet"),
        ("audio_visual", "What is on screen while the number seven is spoken?", "ship"),
        ("audio_visual", "Which number is spoken while the ship is shown?", "seven"),
    }

    assert {(q.kind, q.text, q.answer) for q in questions(clip, None, KINDS[3:])} == {
        ("category", "Which animal is shown?", "cat"),
        ("synchrony", "Does the trumpet play while the cat is shown?", "yes"),
        ("synchrony", "Does the trumpet play while the ship is shown?", "no"),
        ("synchrony", "Is the number seven spoken while the ship is shown?", "yes"),
        ("synchrony", "Is the number seven spoken while the car is shown?", "no"),
        ("transcript", "Say everything that is heard, in order.", "trumpet seven"),
        ("transcript", "Say what is shown, in order.", "cat ship car"),
    }


def test_what_returns_marks_no_moment():
    clip = Clip(
        6,
        (PictureSpan(3, "cat", 0, 2), PictureSpan(8, "ship", 2, 4), PictureSpan(13, "cat", 4, 6)),
        tuple(SoundSpan("digit", 0, name, at, at + 1, 0.5) for name, at in (("six", 0.5), ("two", 2.5), ("six", 4.5))),
    )
    assert [(q.text, q.answer) for q in questions(clip, None, KINDS[2:])] == [
        ("What is on screen while the number two is spoken?", "ship"),
        ("Which number is spoken while the ship is shown?", "two"),
        ("Is the number two spoken while the ship is shown?", "yes"),
        ("Is the number two spoken while the cat is shown?", "no"),
        ("Which vehicle is shown?", "ship"),
        ("Say everything that is heard, in order.", "six two six"),
        ("Say what is shown, in order.", "cat ship cat"),
    ]


def test_conversations_give_nothing_away(clips):
    rng = np.random.default_rng(0)
    for clip in clips[:30]:
        drawn = draw_conversations(rng, clip, 12, KINDS, 4, canonical=True)
        assert sum(map(len, drawn)) == 12
        assert {len(conversation) for conversation in drawn} <= {1, 2, 3, 4}
        for conversation in drawn:
            assert len(set(conversation)) == len(conversation)
            for turn, question in enumerate(conversation):
                said = " ".join(f"{q.text} {q.answer}" for q in conversation[:turn]).replace("?", " ").split()
                if question.answer in ("yes", "no"):
                    things = {*PICTURES, *digits.NAMES, *instruments.NAMES} & set(question.text.strip("?").split())
                    assert len(things) == 2 and not things & set(said)
                else:
                    assert question.answer not in said
    first = Question("video", "what_order", "What is shown first?", "cat")
    two = Question("audio_visual", "number_while_picture", "Which number while the cat?", "two", ("cat",))
    cat = Question("audio_visual", "picture_while_number", "What while the number two?", "cat", ("two",))
    meet = Question("synchrony", "number_meets_picture", "Is two spoken while the cat is shown?", "yes", ("two", "cat"))
    assert given_away(cat, [first]) and given_away(cat, [two]) and not given_away(two, [first])
    assert given_away(meet, [first]) and not given_away(meet, [])
    assert converse([first, cat, two, first], 3) == ((first, two), [cat, first])


def test_drawn_questions_cover_the_kinds(clips):
    rng = np.random.default_rng(0)
    for clip in clips[:50]:
        drawn = draw_questions(rng, clip, 6)
        assert len(drawn) == 6
        assert {q.kind for q in drawn} == {"video", "audio", "audio_visual"}
        assert {q.kind for q in draw_questions(rng, clip, 12, KINDS)} >= set(KINDS) - {"category"}
    with pytest.raises(ValueError, match="no question"):
        draw_questions(rng, Clip(1, (), ()), 1)


def test_classes_are_balanced(sources):
    counts = dict.fromkeys(PICTURES, 0)
    for index in range(500):
        for span in clip_at(5, index, sources, CONFIGS["short"]).pictures:
            counts[span.name] += 1
    expected = sum(counts.values()) / 10
    assert all(abs(c - expected) < 5 * np.sqrt(expected) for c in counts.values()), counts


def test_clips_of_one_sense() -> None:
    picture = PictureSpan(3, "cat", 0, 1)
    assert [q.text for q in questions(Clip(1, (picture,), ()))] == ["What is shown?"]
    for kind, name, text in (
        ("digit", "six", "Which number is spoken?"),
        ("instrument", "harp", "Which instrument plays?"),
    ):
        clip = Clip(2, (), (SoundSpan(kind, 0, name, 0.5, 1.0, 0.5),))
        assert len(clip.picture_ids) == 0
        assert [(q.kind, q.text, q.answer) for q in questions(clip)] == [("audio", text, name)]
