"""Questions about many clips, from a file of JSON lines to another: `python -m eval.answer --batch IN --out OUT`.

Media are decoded in threads beside the accelerator; prompts of one bucket of lengths run as one batch.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import acckv_jax as kv
from acckv_jax.cache import finite_rows
from acckv_jax.generate import for_decoding, reserved_slots, write
from acckv_jax.sharding import ShardingRules, axis_size, on_host
from eval.json_lines import opened
from models.answering import MODALITIES, check_fits, check_policy, not_finite
from models.batching import padded
from models.devices import from_first, is_first
from models.errors import UserError
from models.interface import AVModel, EmbeddedPrompt
from models.media.clip import Media
from models.media.paths import clip_path

Row = dict[str, Any]
THREADS = 2
"""Clips that are decoded at once."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A line of the questions: what is asked about which clip, and a name of the line."""

    id: str
    clip: str
    question: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all answers have in common.

    Attributes:
        layout: of media tokens; None is the model's own.
        max_new_tokens: longest answer.
        rows: questions that run at once, at least.
    """

    layout: str | None
    max_new_tokens: int
    rows: int


def read_questions(path: Path) -> list[Question]:
    """The questions in a file of JSON lines, each {"id": ..., "clip": ..., "question": ...}.

    Raises:
        UserError: if there is no such file, or a line is not of this form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; write a JSON object on each line.") from error
    questions = [_question(f"Line {number} of {path}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise UserError(f'{path} is empty; write lines like {{"id": "1", "clip": "a.mp4", "question": "What is it?"}}.')
    if twice := [id for id, n in collections.Counter(one.id for one in questions).items() if n > 1]:
        raise UserError(f"{path} has the id {twice[0]} twice; each line needs its own.")
    return questions


def _question(where: str, line: str) -> Question:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); correct it or take it out.") from error
    names = [field.name for field in dataclasses.fields(Question)]
    if not isinstance(found, dict) or any(not isinstance(found.get(name), str) or not found[name] for name in names):
        raise UserError(f'{where} must be an object with the texts "id", "clip" and "question", none of them empty.')
    try:
        "".join(found[name] for name in names).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has characters that are half of a pair (\\ud800 to \\udfff); correct it.") from error
    return Question(**{name: found[name] for name in names})


def answer_all(
    load: Callable[[], tuple[AVModel, kv.CachePolicy]],
    questions: Sequence[Question],
    out: Path,
    settings: Settings,
    about: Mapping[str, Any],
    report: Callable[[int, int], None] = lambda done, all: None,
) -> dict[str, str]:
    """Answers what `out` does not answer yet, and appends a line for each as soon as its batch is done.

    A clip or question that cannot be read or asked is a line with its error, and is not asked again. In several
    processes every one computes all rows with the others, and the first one reads and writes `out`.

    Args:
        load: makes the model and the policy; called if there is something to answer.
        questions: from `read_questions`.
        out: file of the answers.
        settings: of all of them.
        about: what else stands in every answer, ready for JSON: answers of another model or policy are not continued.
        report: called with the number of answers that are there, and of all.

    Returns:
        The errors of questions by id, those of earlier runs included; empty in all processes but the first.

    Raises:
        UserError: if `out` holds something else, or cannot be written.
    """
    if not is_first():
        _run(load, questions, settings, set(from_first(None)), lambda rows: None)
        return {}
    with opened(out, "answers") as lines:
        before = [_finished(out, number, line, about) for number, line in enumerate(lines.before, 1)]
        found = {row["id"]: row.get("error") for row in before}
        from_first(sorted(found))
        wanted = {one.id for one in questions}
        report(len(found.keys() & wanted), len(wanted))

        def add(rows: Sequence[Row]) -> None:
            lines.append({**row, **about} for row in rows)
            found.update({row["id"]: row.get("error") for row in rows})
            report(len(found.keys() & wanted), len(wanted))

        _run(load, questions, settings, set(found), add)
        return {id: error for id, error in found.items() if error is not None and id in wanted}


def _finished(path: Path, number: int, line: bytes, about: Mapping[str, Any]) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or "id" not in row or not {"answer", "error"} & row.keys():
        raise UserError(f"Line {number} of {path} is no answer; take it out, or name another file.")
    for key, value in json.loads(json.dumps(about)).items():
        if row.get(key) != value:
            raise UserError(f"{path} holds answers of {key} {row.get(key)}, not {value}; name another file.")
    return row


def _run(
    load: Callable[[], tuple[AVModel, kv.CachePolicy]],
    questions: Sequence[Question],
    settings: Settings,
    done: set[str],
    add: Callable[[Sequence[Row]], None],
) -> None:
    left = [one for one in questions if one.id not in done]
    if not left:
        return
    model, policy = load()
    shards = axis_size(ShardingRules().batch)
    rows = -(-settings.rows // shards) * shards
    waiting: dict[int, list[tuple[Question, EmbeddedPrompt]]] = collections.defaultdict(list)
    for one, found in _prompts(model, policy, left, settings):
        if isinstance(found, UserError):
            add([_row(one, error=f"{found}")])
            continue
        bucket = waiting[kv.bucket_length(len(found))]
        bucket.append((one, found))
        if len(bucket) == rows:
            add(_answers(model, policy, bucket, rows, settings.max_new_tokens))
            bucket.clear()
    for bucket in waiting.values():
        if bucket:
            add(_answers(model, policy, bucket, rows, settings.max_new_tokens))


def _prompts(
    model: AVModel, policy: kv.CachePolicy, questions: Sequence[Question], settings: Settings
) -> Iterator[tuple[Question, EmbeddedPrompt | UserError]]:
    """Questions with their prompts; a clip is decoded and encoded once for all of its questions."""
    by_clip: dict[str, list[Question]] = collections.defaultdict(list)
    for one in questions:
        by_clip[one.clip].append(one)
    clips = list(by_clip)

    def decode(number: int) -> Media | UserError:
        try:
            return model.load_media(clip_path(clips[int(number)]))
        except UserError as error:
            return error

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
    decoded: Iterable[Any] = grain.MapDataset.range(len(clips)).map(decode).to_iter_dataset(options)
    for clip, media in zip(clips, decoded, strict=True):
        try:
            if isinstance(media, UserError):
                raise media
            prefix = model.encode_media(media, settings.layout or model.layouts[0])
        except UserError as error:
            yield from ((one, error) for one in by_clip[clip])
            continue
        for one in by_clip[clip]:
            yield one, _prompt(model, policy, prefix, one.question, settings.max_new_tokens)


def _prompt(
    model: AVModel, policy: kv.CachePolicy, prefix: EmbeddedPrompt, question: str, max_new_tokens: int
) -> EmbeddedPrompt | UserError:
    try:
        prompt = prefix.then(model.encode_question(question))
        check_fits(model, prompt, max_new_tokens)
        check_policy(policy, prompt, model.decoder.num_layers)
    except UserError as error:
        return error
    return prompt


def _answers(
    model: AVModel,
    policy: kv.CachePolicy,
    asked: Sequence[tuple[Question, EmbeddedPrompt]],
    rows: int,
    max_new_tokens: int,
) -> list[Row]:
    """Answers of prompts of one bucket; missing rows are filled up with the first."""
    questions, prompts = zip(*asked, strict=True)
    length = kv.bucket_length(len(prompts[0]))
    batch = padded([*prompts, *[prompts[0]] * (rows - len(prompts))], length)
    slots = reserved_slots(policy, max_new_tokens)
    logits, cache = kv.jitted.prefill(
        model.decoder, model.params, **batch.arguments(), policy=policy, reserved_slots=slots
    )
    kept = on_host(jnp.stack([_kept(one.valid, one.modality) for one in cache.layers]).mean(0))
    size = kv.cache_bytes(cache).prompt // rows
    more: dict[str, Any] = {"stop_token_ids": model.stop_token_ids}
    start = state = kv.start_decoding(logits, for_decoding(model.decoder, cache), jax.random.key(0), **more)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    for made, numbers, state in write(  # noqa: B007
        model.decoder, model.params, start, policy, max_new_tokens, **more
    ):
        for mine, new, number in zip(tokens, made.tolist(), numbers.tolist(), strict=True):
            mine += new[:number]
    finite = finite_rows(state.cache) & np.isfinite(on_host(logits).astype(np.float32)).all(-1)
    found = []
    for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
        if not finite[number]:
            found.append(_row(question, error=not_finite(model)))
            continue
        found.append(
            _row(
                question,
                answer=model.detokenize(tokens[number]).strip(),
                tokens={m.name.lower(): prompt.count(m) for m in MODALITIES},
                kept={m.name.lower(): round(float(n), 2) for m, n in zip(MODALITIES, kept[number], strict=True)},
                cache_bytes=size,
            )
        )
    return found


@jax.jit
def _kept(valid: Array, modality: Array) -> Float[Array, "B M"]:
    """[B, M] valid slots of each row by modality, averaged over KV heads."""
    each = [(valid & (modality == m)).sum((-2, -1), dtype=jnp.int32) for m in MODALITIES]
    return jnp.stack(each, axis=-1).astype(jnp.float32) / valid.shape[-2]


def _row(question: Question, **found: Any) -> Row:
    return dataclasses.asdict(question) | found
