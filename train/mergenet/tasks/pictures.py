"""Shared by both tasks with pictures: initial parameters, export, and pictures of one size."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Array, UInt8
from PIL import Image
from tokenizers import Tokenizer

from models.bert.config import BertConfig
from models.bert.params import load_bert, open_bert
from models.errors import UserError
from models.hf.checkpoint import open_checkpoint
from models.hf.config import Section, reading
from models.hf.export import save_params
from models.hf.load import load_params
from models.layers.init import FastRngs, Params, abstract_params
from models.media.resize import resize_bilinear
from models.readers.json_object import read_object
from models.vision.image_text import PictureTextModel
from models.vision.siglip import SiglipConfig, SiglipVision, siglip_tensors
from train.mergenet.checkpoint import fresh_folder, own_names
from train.mergenet.tasks.bert import check_length
from train.mergenet.tasks.interface import Part
from train.mergenet.tasks.spec import ENCODERS, TOWERS, TaskSpec

TEXT_TOWER = ("text_model.*", "logit_scale", "logit_bias")
"""Parts of a SigLIP checkpoint beside its vision tower."""
BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
"""Sizes of siglip-base-patch16-224, whose config.json names none of them."""


class PictureTask:
    """See `train.mergenet.tasks.interface.Task`."""

    KIND: ClassVar[Literal["answers", "retrieval"]]
    METRICS: ClassVar[dict[str, str]]

    def __init__(self, spec: TaskSpec) -> None:
        """Makes the model.

        Raises:
            UserError: if weights cannot be opened, or rows are longer than the model takes.
        """
        self.spec = spec
        self.metrics = self.METRICS
        text = ENCODERS[spec.text] if spec.weights is None else _encoder(Path(spec.weights))
        check_length(spec, text.max_position_embeddings)
        answers = spec.answers if self.KIND == "answers" else 1
        self.model = PictureTextModel(self.KIND, TOWERS[spec.vision], text, spec.width, answers)

    def init(self, key: Array) -> tuple[Params, Params]:
        """Random parameters, with the towers of the weights where they are given."""
        params = self.model.init(key)
        if self.spec.weights is not None:
            params["text"] = load_bert(Path(self.spec.weights), "encoder")[1]["encoder"]
        if self.spec.vision_weights is not None:
            params["vision"] = load_vision(Path(self.spec.vision_weights), self.model.vision)
        return params, {}

    def shapes(self) -> tuple[Params, Params]:
        """Of the parameters."""
        return self.model.shapes(), {}

    def load(self, folder: Path) -> tuple[Params, Params]:
        """The parameters of an exported model.

        Raises:
            UserError: if the folder holds none, or one of other sizes.
        """
        if read_object(folder / "config.json") != self._config():
            raise UserError(f"{folder} holds another model than the source; name the folder of such a model.")
        shapes = self.model.shapes()
        return load_params(open_checkpoint(folder), own_names(shapes), shapes), {}

    def export(self, folder: Path, params: Params, tokenizer: Tokenizer) -> None:
        """Writes model.safetensors under our names, config.json, and the tokenizer."""
        with TemporaryDirectory() as draft:
            path = Path(draft) / "tokenizer.json"
            tokenizer.save(str(path))
            save_params(fresh_folder(folder), params, own_names(params), self._config(), companions=[path])

    def _config(self) -> dict[str, Any]:
        return {"picture_text": dataclasses.asdict(self.model)}


def _encoder(folder: Path) -> BertConfig:
    with reading(folder) as section:
        return open_bert(folder, section, "encoder").model.config


def load_vision(folder: Path, config: SiglipConfig) -> Params:
    """The vision tower of a SigLIP checkpoint of transformers.

    Raises:
        UserError: if the folder holds none, or one of another size.
    """
    with reading(folder) as section:
        named = section.section("vision_config") if section.has("vision_config") else section
        filled = Section(named.file, BASE | named.values, named.at)
        found = SiglipConfig.from_hf(filled)
        filled.check()
    if found != config:
        raise UserError(f"The vision tower in {folder} is {found}, not {config}; name the folder of such a tower.")
    _, shapes = abstract_params(lambda: SiglipVision(config, rngs=FastRngs(0)))
    tensors = siglip_tensors(config)
    return load_params(open_checkpoint(folder), tensors, shapes, prefix="vision_model.", ignore=TEXT_TOWER)


def picture_reader(part: Part, size: int) -> Callable[[np.ndarray], UInt8[np.ndarray, "n size size 3"]]:
    """A function from numbers of examples to their pictures, resized (without keeping the aspect ratio)."""

    def read(numbers: np.ndarray) -> np.ndarray:
        return np.concatenate([resize_bilinear(in_rgb(part[int(i)]["image"])[None], size, size) for i in numbers])

    return read


def in_rgb(image: UInt8[np.ndarray, "Y X C"]) -> UInt8[np.ndarray, "Y X 3"]:
    """A decoded picture with three channels: COCO has a few JPEGs in CMYK."""
    if image.shape[-1] != len("CMYK"):
        return image
    bands = [Image.fromarray(image[..., i]) for i in range(len("CMYK"))]
    return np.asarray(Image.merge("CMYK", bands).convert("RGB"))
