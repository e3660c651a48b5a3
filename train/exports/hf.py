"""A model as a checkpoint folder in Hugging Face's format."""

from pathlib import Path

import jax
import numpy as np

from models.files import whole_folder
from models.hf.decoder import decoder_tensors, llama_section
from models.hf.export import save_params
from models.registry import open_source
from models.smolav.params import load_smolav, read_config, read_trained, save_smolav
from models.text.tokenizers import load_smollm2_tokenizer
from train.exports.opened import companions_of, smolav_folder, with_dtype

DECODER = "decoder"
"""Folder in SmolAV's of its language model, for transformers."""


def export_hf(name: str, out: Path, dtype: np.dtype | None = None, max_shard_bytes: float = 5e9) -> None:
    """Writes a model for transformers and for us.

    Of SmolAV that are its trained tensors, which `models.load` reads, and in `decoder` its language model with the
    low-rank updates merged, as a Llama with its tokenizer. Transformers has no class for the whole.

    Args:
        name: a model's name, or the checkpoint folder to read.
        out: the folder to make.
        dtype: type of the written tensors (of SmolAV: of its language model); None keeps theirs, which then must all
            be of one type.
        max_shard_bytes: largest size of a file of tensors.

    Raises:
        UserError: if there is no such model, it is not supported or does not fit its configuration, or `out` is in use
            or cannot be written.
    """
    if (folder := smolav_folder(name)) is None:
        _rewrite(Path(name), out, dtype, max_shard_bytes)
    else:
        _write_smolav(folder, out, dtype, max_shard_bytes)


def _rewrite(model: Path, out: Path, dtype: np.dtype | None, max_shard_bytes: float) -> None:
    source = open_source(model)
    kept = dtype or source.dtype()
    _, params = source.load(kept)
    config = with_dtype(source.config, np.dtype(kept).name)
    sizes = {"max_shard_bytes": max_shard_bytes}
    save_params(out, params, source.tensors, config, **sizes, companions=companions_of(model))


def _write_smolav(folder: Path, out: Path, dtype: np.dtype | None, max_shard_bytes: float) -> None:
    trained = read_trained(folder, read_config(folder))
    config, _, params = load_smolav(folder)
    kept = np.dtype(dtype or np.float32)
    decoder = jax.tree.map(lambda x: jax.device_put(np.asarray(x, kept)), params["decoder"])
    tokenizer = load_smollm2_tokenizer()
    ends = {name: tokenizer.token_to_id(f"<|im_{mark}|>") for name, mark in (("bos", "start"), ("eos", "end"))}
    section = llama_section(config.decoder, kept.name) | {f"{name}_token_id": at for name, at in ends.items()}
    tensors = decoder_tensors(config.decoder)
    with whole_folder(out) as draft:
        save_smolav(draft, config, trained)
        save_params(draft / DECODER, decoder, tensors, section, max_shard_bytes=max_shard_bytes)
        tokenizer.save(str(draft / DECODER / "tokenizer.json"))
