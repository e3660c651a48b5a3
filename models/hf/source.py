"""A checkpoint together with the module that it fills."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.decoder import Decoder
from models.errors import UserError
from models.hf.checkpoint import Checkpoint, open_checkpoint
from models.hf.config import Section
from models.hf.decoder import decoder_config, decoder_copies, decoder_tensors
from models.hf.load import FLOATS, load_params
from models.hf.tensors import Tensors
from models.layers.init import FastRngs, Params, abstract_params
from models.orbax import orbax_dtypes, restore_orbax
from models.placement import abstract_params_on


@dataclasses.dataclass(frozen=True)
class Source:
    """What a checkpoint holds.

    Attributes:
        checkpoint: the opened checkpoint.
        make: builds the module, with parameters of a type.
        tensors: names of its parameters in the checkpoint.
        config: what a config.json says of the module by itself.
        prefix: that the checkpoint's names may have before these.
        ignore: patterns of names that are not read.
        copies: patterns of names that repeat a tensor -> the tensor's name.
    """

    checkpoint: Checkpoint
    make: Callable[[jnp.dtype], nnx.Module]
    tensors: Tensors
    config: Mapping[str, Any]
    prefix: str = ""
    ignore: tuple[str, ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def dtype(self) -> np.dtype:
        """The type of all tensors.

        Raises:
            UserError: if they are of several types.
        """
        kinds = self._dtypes()
        if len(kinds) > 1:
            raise UserError(
                f"The tensors in {self.checkpoint.folder} are of several types ({', '.join(sorted(map(str, kinds)))}); "
                "say which one is wanted (--dtype)."
            )
        return kinds.pop() if kinds else np.dtype(np.float32)

    def run_dtype(self) -> np.dtype:
        """The type to run in on this machine: float32 on CPUs, where it is the fastest, else that of the tensors.

        For tensors of several types it is bfloat16.
        """
        if jax.default_backend() == "cpu":
            return np.dtype(np.float32)
        return self.dtype() if len(self._dtypes()) == 1 else np.dtype(jnp.bfloat16)

    def _dtypes(self) -> set[np.dtype]:
        if self.checkpoint.orbax:
            return orbax_dtypes(self.checkpoint.folder)
        names = {full: full.removeprefix(self.prefix) for full in self.checkpoint.tensors}
        kinds = {stored.dtype for full, stored in self.checkpoint.tensors.items() if names[full] in self.tensors}
        return kinds & FLOATS  # others, and none, are reported by `load`

    def load(self, dtype: jnp.dtype) -> tuple[nnx.GraphDef, Params]:
        """The module's graph definition and its parameters, divided over the mesh that is set (`jax.set_mesh`), if any.

        Raises:
            UserError: if the checkpoint does not fit.
        """

        def make() -> nnx.Module:
            return self.make(dtype)

        mesh = jax.sharding.get_mesh()
        graph, shapes = abstract_params(make) if mesh.empty else abstract_params_on(mesh, make)
        if self.checkpoint.orbax:
            return graph, restore_orbax(self.checkpoint.folder, shapes)
        prefix, ignore, copies = self.prefix, self.ignore, self.copies
        return graph, load_params(self.checkpoint, self.tensors, shapes, prefix=prefix, ignore=ignore, copies=copies)


def open_decoder(folder: Path, section: Section, *, attention_bias: bool) -> Source:
    """Opens a checkpoint of a Llama or Qwen2 decoder by itself.

    Raises:
        UserError: if there is no checkpoint, or it is damaged, or its config.json is incomplete or not supported.
    """
    tied = section.need("tie_word_embeddings", bool)
    config = decoder_config(section, tied=tied, attention_bias=attention_bias)
    section.check()

    def make(dtype: jnp.dtype) -> Decoder:
        return Decoder(config, rngs=FastRngs(0), dtype=dtype)

    copies = decoder_copies(config)
    return Source(open_checkpoint(folder), make, decoder_tensors(config), section.values, copies=copies)
