"""SmolAV's parameters: the pretrained language model, with the trained tensors that lie beside this file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.errors import UserError
from models.layers.init import FastRngs, Params, abstract_params
from models.orbax import holds_orbax, restore_orbax
from models.readers.json_object import read_object
from models.smolav.config import SmolAVConfig
from models.smolav.lora import init_lora, merge_lora
from models.smolav.modeling import MediaEmbedder, SmolAV
from models.smolav.smollm2 import load_smollm2

FOLDER = Path(__file__).parent
TENSORS, CONFIG = "params.safetensors", "config.json"
SEPARATOR = "."  # a tensor's name is its path: media.video.up.kernel


def load_smolav(folder: Path = FOLDER) -> tuple[SmolAVConfig, nnx.GraphDef, Params]:
    """Configuration, graph definition and parameters (NumPy, float32) of `SmolAV`, low-rank updates merged.

    Args:
        folder: where config.json lies beside params.safetensors, or an Orbax checkpoint of the whole; by default the
            ones that come with the source.

    Raises:
        UserError: if a file is missing or damaged, does not fit the configuration, or weights cannot be fetched.
    """
    config = read_config(folder)
    graph, shapes = abstract_params(lambda: SmolAV(config, rngs=FastRngs(0)))
    if holds_orbax(folder):
        return config, graph, jax.tree.map(np.asarray, restore_orbax(folder, shapes))
    trained = read_trained(folder, config)
    decoder, language_model = load_smollm2()
    if decoder != config.decoder:
        raise UserError(f"{folder / CONFIG} is for another language model than SmolLM2-135M-Instruct; train it anew.")
    merged = merge_lora(language_model, trained["lora"], config.lora_scale)
    return config, graph, {"decoder": merged, "media": trained["media"]}


def read_config(folder: Path) -> SmolAVConfig:
    """The configuration in a folder.

    Raises:
        UserError: if there is none, or it is not one of SmolAV.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"There is no {path}; `python -m train.export` writes one.")
    try:
        return SmolAVConfig.from_dict(read_object(path))
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} is not a configuration of SmolAV ({error}); export it again.") from error


def trained_shapes(config: SmolAVConfig) -> Params:
    """The trained parameters as shapes: {"media": the embedder's, "lora": the low-rank updates}."""
    _, media = abstract_params(lambda: MediaEmbedder(config, rngs=FastRngs(0)))
    lora = jax.eval_shape(lambda key: init_lora(key, config.decoder, config.lora_rank), jax.random.key(0))
    return {"media": media, "lora": lora}


def read_trained(folder: Path, config: SmolAVConfig) -> Params:
    """The trained tensors in a folder, as {"media": ..., "lora": ...}.

    Raises:
        UserError: if the file is missing or damaged; every missing, unknown and misshapen tensor is named.
    """
    path = folder / TENSORS
    if not path.is_file():
        raise UserError(f"There is no {path}; `python -m train.export` writes one.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or export it again.") from error
    expected: dict[str, Any] = flatten_dict(trained_shapes(config), sep=SEPARATOR)
    shapes = {name: tuple(leaf.shape) for name, leaf in expected.items()}
    problems = [f"{name} is missing" for name in sorted(shapes.keys() - tensors.keys())]
    problems += [f"{name} is unknown" for name in sorted(tensors.keys() - shapes.keys())]
    problems += [
        f"{name} has shape {tensors[name].shape}, not {shapes[name]}"
        for name in sorted(shapes.keys() & tensors.keys())
        if tensors[name].shape != shapes[name]
    ]
    if problems:
        raise UserError(f"{path} does not fit {CONFIG}: {'; '.join(problems)}.")
    return unflatten_dict({name: array.astype(np.float32) for name, array in tensors.items()}, sep=SEPARATOR)


def save_smolav(folder: Path, config: SmolAVConfig, trained: Params) -> None:
    """Writes the trained tensors (float32) and the configuration into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = flatten_dict(trained, sep=SEPARATOR)
    save_file({name: np.asarray(leaf, np.float32) for name, leaf in flat.items()}, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
