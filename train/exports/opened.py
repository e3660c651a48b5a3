"""A model to be exported: SmolAV, or a checkpoint folder of a supported family."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from models.acckv_tau import TAU
from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.hf.config import model_type, read_config
from models.layers.init import Params
from models.readers.json_object import read_object
from models.registry import AV_MODELS, CHECKPOINTS, NAMED, open_source
from models.smolav.params import FOLDER, load_smolav
from models.smolav.preprocess import Chat
from models.text.chatml import ChatML
from models.text.tokenizers import load_smollm2_tokenizer, load_tokenizer

COMPANIONS = (".json", ".txt", ".jinja", ".model")
"""Suffixes of files beside the tensors (tokenizer, preprocessing, generation) that a written checkpoint keeps."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """What the formats need to know of a model; its tensors are read by `load`.

    Attributes:
        decoder: sizes of the decoder.
        reads_media: whether it is an audio-video model, and no decoder by itself.
        tau: threshold of AccKV's gate for its family, if it is known.
        stop_token_ids: tokens that end an answer.
        config: what a config.json says of the model.
        companions: files that belong beside the tensors.
        load: all parameters in a type, or in their own; those of an audio-video model's decoder lie below "decoder".
    """

    decoder: DecoderConfig
    reads_media: bool
    tau: float | None
    stop_token_ids: tuple[int, ...]
    config: Mapping[str, Any]
    companions: tuple[Path, ...]
    load: Callable[[np.dtype | None], Params]


def smolav_folder(name: str) -> Path | None:
    """The folder of SmolAV's trained tensors, if `name` means SmolAV.

    Raises:
        UserError: if there is neither such a name nor such a folder.
    """
    if name in NAMED:
        return FOLDER
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"There is no folder {name}; give {' or '.join(NAMED)}, or the folder of a checkpoint.")
    return folder if read_config(folder).has("decoder") else None


def open_model(name: str) -> Opened:
    """Opens a model by name, or a checkpoint folder.

    Raises:
        UserError: if there is no such model, or it is damaged, incomplete or not supported.
    """
    folder = smolav_folder(name)
    return _open_checkpoint(Path(name)) if folder is None else _open_smolav(folder)


def companions_of(folder: Path) -> tuple[Path, ...]:
    """The files of a checkpoint folder that belong beside its tensors; config.json is written anew."""
    found = (path for path in sorted(folder.iterdir()) if path.suffix in COMPANIONS and path.is_file())
    return tuple(path for path in found if path.name != "config.json" and not path.name.endswith(".index.json"))


def with_dtype(config: Any, name: str) -> Any:
    """A configuration that says of all its sections that they are of a type; both spellings are kept."""
    if not isinstance(config, Mapping):
        return config
    return {key: name if key in ("dtype", "torch_dtype") else with_dtype(value, name) for key, value in config.items()}


def _open_smolav(folder: Path) -> Opened:
    config, _, params = load_smolav(folder)

    def load(dtype: np.dtype | None) -> Params:
        return jax.tree.map(lambda x: jax.device_put(np.asarray(x, dtype)), params)

    stop = Chat.smollm2(lambda text: load_smollm2_tokenizer().encode(text).ids).end
    return Opened(config.decoder, True, TAU["smolav"], (stop,), dataclasses.asdict(config), (), load)


def _open_checkpoint(folder: Path) -> Opened:
    source = open_source(folder)
    kind = model_type(read_config(folder), CHECKPOINTS)
    media = kind in AV_MODELS
    tau = next((value for family, value in TAU.items() if kind.startswith(family)), None)
    module: Any = nnx.eval_shape(lambda: source.make(np.dtype(np.float32)))
    decoder: Decoder = module.decoder if media else module
    stop = ChatML(load_tokenizer(folder), decoder.config.vocab_size).stop_token_ids if media else _end_tokens(folder)
    # Written out, so that it need not be inferred from which tensors there are.
    config = {**source.config, "tie_word_embeddings": decoder.config.tie_word_embeddings}

    def load(dtype: np.dtype | None) -> Params:
        return source.load(dtype or source.dtype())[1]

    return Opened(decoder.config, media, tau, stop, config, companions_of(folder), load)


def _end_tokens(folder: Path) -> tuple[int, ...]:
    """The eos_token_id of a decoder's checkpoint; it may be one number or several, and none."""
    files = (folder / name for name in ("generation_config.json", "config.json"))
    given = [read_object(file).get("eos_token_id") for file in files if file.is_file()]
    first = next((ids for ids in given if ids is not None), [])
    ids = first if isinstance(first, list) else [first]
    if any(type(one) is not int or one < 0 for one in ids):
        raise UserError(f"eos_token_id of {folder} must be one token id or several, not {first!r}.")
    return tuple(ids)
