"""A decoder as programs for other machines: `jax.export` artefacts beside the weights, and a manifest of both.

Three programs over flat tuples of arrays, each input and output with a name, so that a script without our code can hand
one's outputs to the next:

    prefill(params.*, prompt.*) -> logits, scored.*             the prompt in full, with the policy's statistics
    prune(scored.*) -> cache.*                                  as many slots as the budget leaves, and free ones
    decode(params.*, cache.*, token, active) -> tokens, number, cache.*, token, active
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import export
from safetensors.numpy import save_file

import acckv_jax as kv
from models.errors import UserError
from models.files import whole_folder
from models.layers.init import Params
from models.over_decoder import decoder_of
from models.policies import build_policy, check_one_pass, parse_budget
from train.exports.opened import Opened, open_model

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
FORMAT = 1
"""Of the manifest."""
BUDGET = "0.2"
"""Where a policy is given without a budget."""
HOW = (
    "Every program takes and returns flat tuples of arrays in the order listed here.",
    f"The inputs params.* are the tensors of {WEIGHTS}, prompt.* describe the prompt: embeddings [B, T, D] or tokens "
    "[B, T], padded on the right; modality [B, T] (0 text, 1 video, 2 audio); length [B], the real tokens; where "
    "listed, positions [A, B, T] and delta [B], the position of the first new token minus its index.",
    "Every other input is the newest output of that name: run prefill, prune, and then decode repeatedly.",
    "Before the first decode, token [B] is the argmax of logits, and active [B] is false where it is a stop token.",
    "decode returns tokens [B, steps], of which the first `number` were made: fewer than `steps` when every row has "
    "ended or no slot is free. Rows that have ended repeat their last token.",
    "The inputs of prune (scored.*) and the caches of decode (cache.*) may be donated.",
    "A cache whose *.finite is false has met a NaN or infinity in that row; its tokens mean nothing.",
)

Trees = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ProgramOptions:
    """With --to stablehlo, what the programs are made for."""

    length: int = 1024
    """Tokens that prompts are padded to."""
    batch: int = 1
    """Rows."""
    policy: str = "full"
    """A policy, or one inside wrappers such as 'protected(snapkv)'."""
    budget: str | None = None
    """Fraction of the prompt, such as 0.2, or number of slots, such as 512, to keep; 0.2 unless given."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """An option of the policy as NAME=VALUE; may be repeated."""
    steps: int = 16
    """Most tokens that one call of decode makes."""
    new_tokens: int = 64
    """Longest answer, for which slots are reserved."""
    platforms: tuple[Literal["cpu", "tpu", "cuda", "rocm"], ...] = ("cpu",)
    """For each one a file of every program."""
    inputs: Literal["embeddings", "tokens"] | None = None
    """What prompts are: by default embeddings for models that read media, token ids for decoders by themselves."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A function over named trees of arrays.

    Attributes:
        run: takes the trees by name, and returns others by name; jax orders those by name.
        takes: their shapes, in order.
    """

    run: Callable[..., Trees]
    takes: Trees

    def flat(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """The same over a tuple of arrays."""
        left = iter(arrays)
        parts = {name: jax.tree.flatten(tree) for name, tree in self.takes.items()}
        trees = {name: jax.tree.unflatten(kind, itertools.islice(left, len(x))) for name, (x, kind) in parts.items()}
        return tuple(jax.tree.leaves(self.run(**trees)))

    @property
    def gives(self) -> Trees:
        """Shapes of the trees that it returns."""
        return jax.eval_shape(lambda trees: self.run(**trees), self.takes)


def export_stablehlo(name: str, out: Path, options: ProgramOptions, dtype: np.dtype | None = None) -> dict[str, Any]:
    """Writes prefill, prune and decode for every platform, the weights, and manifest.json.

    Args:
        name: a model's name, or a checkpoint folder.
        out: the folder to make.
        options: lengths, rows, policy and platforms.
        dtype: type of the parameters; None keeps theirs, which then must all be of one type.

    Returns:
        The manifest.

    Raises:
        UserError: if there is no such model or policy, a number does not fit, or `out` is in use or cannot be written.
    """
    _check_numbers(options)
    _policy(options, None)  # mistakes are reported before a large model is opened
    model = open_model(name)
    policy = _policy(options, model.tau)
    _check_fits(options, policy, model)
    layers = model.decoder.num_hidden_layers
    fitted = policy.for_layers(layers)
    whole = model.load(dtype)
    params = whole["decoder"] if model.reads_media else whole
    with whole_folder(out) as draft:
        made = programs(model, params, policy, options)
        save_file({key: np.asarray(x) for key, x in named({"params": params}).items()}, draft / WEIGHTS)
        manifest = {
            "format": FORMAT,
            "how": HOW,
            "model": name,
            "policy": f"{policy}",
            "slots": [fitted.capacity(options.length, layer) for layer in range(layers)],
            **{key: getattr(options, key) for key in ("length", "batch", "new_tokens", "steps")},
            "stop_token_ids": model.stop_token_ids,
            "weights": WEIGHTS,
            "jax": jax.__version__,
            "programs": {key: write_program(draft, key, one, options.platforms) for key, one in made.items()},
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def programs(model: Opened, params: Params, policy: kv.CachePolicy, options: ProgramOptions) -> dict[str, Program]:
    """Prefill, prune and decode, of which only the shapes are known."""
    c, decoder = model.decoder, decoder_of(model.decoder)
    rows, tokens, shape = options.batch, options.length, jax.ShapeDtypeStruct
    weights = jax.tree.map(lambda x: shape(x.shape, x.dtype), params)
    kind = options.inputs or ("embeddings" if model.reads_media else "tokens")
    embedded = shape((rows, tokens, c.hidden_size), weights["tokens"]["embedding"].dtype)
    prompt: Trees = {kind: embedded if kind == "embeddings" else shape((rows, tokens), jnp.int32)}
    prompt |= {"modality": shape((rows, tokens), jnp.int8), "length": shape((rows,), jnp.int32)}
    if c.mrope_section:
        prompt |= {"positions": shape((len(c.mrope_section), rows, tokens), jnp.int32)}
        prompt |= {"delta": shape((rows,), jnp.int32)}

    def prefill(params: Params, prompt: Trees) -> Trees:
        described = kv.Prompt(prompt["modality"], prompt["length"])
        where = {key: prompt[key] for key in ("positions", "delta") if key in prompt}
        logits, scored = kv.score(decoder, params, prompt[kind], described, (policy,), **where)
        return {"logits": logits, "scored": scored}

    def prune(scored: kv.Scored) -> Trees:
        return {"cache": kv.prune(scored, policy, reserved_slots=policy.reserved_slots(options.new_tokens))}

    def decode(params: Params, cache: kv.KVCache, token: jax.Array, active: jax.Array) -> Trees:
        state = kv.DecodeState(cache, token, active, jax.random.key(0))  # the key is not read: decoding is greedy
        stop, policy_then = model.stop_token_ids, policy.while_decoding()
        tokens, number, state = kv.decode(decoder, params, state, policy_then, steps=options.steps, stop_token_ids=stop)
        after = {"cache": state.cache, "token": state.token, "active": state.active}
        return {"tokens": tokens, "number": number} | after

    first = Program(prefill, {"params": weights, "prompt": prompt})
    second = Program(prune, {"scored": first.gives["scored"]})
    next_token = {"token": shape((rows,), jnp.int32), "active": shape((rows,), jnp.bool)}
    third = Program(decode, {"params": weights, "cache": second.gives["cache"]} | next_token)
    return {"prefill": first, "prune": second, "decode": third}


def write_program(folder: Path, name: str, program: Program, platforms: tuple[str, ...]) -> dict[str, Any]:
    """Writes a program for every platform; returns what the manifest says of it."""
    files, calls, version = {}, {}, 0
    for platform in platforms:
        files[platform] = f"{name}.{platform}.stablehlo"
        exported, unstable = lowered(program, platform)
        (folder / files[platform]).write_bytes(exported.serialize())
        stable = sorted(custom_calls(exported.mlir_module()) - unstable)
        calls[platform] = {"guaranteed": stable, "not_guaranteed": sorted(unstable)}
        version = exported.calling_convention_version
    return {
        "files": files,
        "calling_convention_version": version,
        "custom_calls": calls,
        "inputs": _listed(program.takes),
        "outputs": _listed(program.gives),
    }


def lowered(program: Program, platform: str) -> tuple[export.Exported, set[str]]:
    """A program for one platform, and its custom calls that later versions of jax may not know.

    jax.export refuses those until they are named one by one, and says of which a refusal is about.
    """
    flat = [x for tree in program.takes.values() for x in jax.tree.leaves(tree)]
    run = jax.jit(program.flat)
    try:
        return export.export(run, platforms=[platform])(*flat), set()
    except ValueError as error:
        if not (unstable := custom_calls(str(error))):
            raise
    allowed = [export.DisabledSafetyCheck.custom_call(target) for target in sorted(unstable)]
    return export.export(run, platforms=[platform], disabled_checks=allowed)(*flat), unstable


def custom_calls(module: str) -> set[str]:
    """Targets of the custom calls in a module's text."""
    return set(re.findall(r'custom_call @"?([\w.$]+)', module)) | set(
        re.findall(r'call_target_name = "([^"]+)"', module)
    )


def prompt_arrays(inputs: Any, prompt: kv.Prompt, positions: Any = None, delta: Any = None) -> dict[str, np.ndarray]:
    """A padded prompt under the names of prefill's inputs, for `safetensors.numpy.save_file`.

    Args:
        inputs: [B, T] token ids or [B, T, D] embeddings.
        prompt: modalities and lengths.
        positions: [A, B, T] rotary positions, if they are not counted.
        delta: [B] beside them.
    """
    kind = "embeddings" if np.ndim(inputs) == 3 else "tokens"
    found = {kind: inputs, "modality": prompt.modality, "length": prompt.length, "positions": positions, "delta": delta}
    arrays = {f"prompt.{name}": np.asarray(x) for name, x in found.items() if x is not None}
    return {name: x.astype(np.int32) if x.dtype == np.int64 else x for name, x in arrays.items()}


def named(trees: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of trees, in the order of programs, by the tree's name and the path inside it."""
    return {
        ".".join(filter(None, (name, jax.tree_util.keystr(path, simple=True, separator=".")))): leaf
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _listed(trees: Trees) -> list[dict[str, Any]]:
    return [{"name": name, "shape": x.shape, "dtype": x.dtype.name} for name, x in named(trees).items()]


def _check_numbers(options: ProgramOptions) -> None:
    for name in ("length", "batch", "steps", "new_tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}.")
    if options.steps > options.new_tokens:
        raise UserError(
            f"--steps {options.steps} is more than --new-tokens {options.new_tokens}, for which slots are reserved; "
            "make either fit."
        )
    if not options.platforms:
        raise UserError("--platforms needs one platform or several, such as cpu tpu.")


def _policy(options: ProgramOptions, tau: float | None) -> kv.CachePolicy:
    if options.policy == "full" and options.budget is not None:
        raise UserError("--policy full keeps the whole cache and has no budget; leave out --budget.")
    budget = 1.0 if options.policy == "full" else parse_budget(options.budget or BUDGET)
    return build_policy(options.policy, budget, options.option, **({} if tau is None else {"tau": tau}))


def _check_fits(options: ProgramOptions, policy: kv.CachePolicy, model: Opened) -> None:
    """Checks lengths against the model's, and the budget against a prompt of media alone, which asks least of it."""
    longest, wanted = model.decoder.max_position_embeddings, options.length + options.new_tokens
    if wanted > longest:
        raise UserError(
            f"--length {options.length} and --new-tokens {options.new_tokens} are {wanted} tokens, but the model reads "
            f"at most {longest}."
        )
    none, all_tokens = np.zeros(options.batch, int), np.full(options.batch, options.length)
    check_one_pass({options.policy: policy})
    try:
        policy.check_layers(model.decoder.num_hidden_layers)
        policy.check(kv.TokenCounts(text=none, video=all_tokens, audio=none))
    except ValueError as error:
        raise UserError(f"Policy {options.policy}: {error}") from error
