"""A vision transformer and BERT side by side: answers about pictures, or pictures and captions in one space.

The vision tower is SigLIP's (arXiv 2303.15343) with its pooling head, the text tower BERT or DistilBERT, of which the
first token's vector is read. Answers: both vectors are mapped to one width, and the product of their hyperbolic
tangents is classified, as in VQA (Antol et al. 2015, arXiv 1505.00468, section 4). Retrieval: both are mapped to one
space and compared by their cosine, with a learned scale (CLIP, arXiv 2103.00020, section 2.3).
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from acckv_jax.sharding import ShardingRules
from models.bert.config import BertConfig
from models.bert.modeling import BertEncoder
from models.errors import UserError
from models.layers.dropout import dropout, split
from models.layers.init import FastRngs, Params, abstract_params
from models.layers.linear import Linear
from models.vision.siglip import SiglipConfig, SiglipVision

LARGEST_SCALE = math.log(100)  # of the logarithm of the scale, as CLIP's


class PictureText(nnx.Module):
    """Both towers and what joins them.

    Args:
        model: sizes.
        rngs: random streams for initialisation.
    """

    def __init__(self, model: "PictureTextModel", *, rngs: nnx.Rngs) -> None:
        m, dtype = model, jnp.dtype(jnp.float32)
        self.vision = SiglipVision(m.vision, rngs=rngs, dtype=dtype)
        self.text = BertEncoder(m.text, rules=ShardingRules(), rngs=rngs, dtype=dtype)
        self.from_picture = Linear(m.vision.hidden_size, m.width, use_bias=True, rngs=rngs, dtype=dtype)
        self.from_text = Linear(m.text.hidden_size, m.width, use_bias=True, rngs=rngs, dtype=dtype)
        answers = m.task == "answers"
        self.head = Linear(m.width, m.answers, use_bias=True, rngs=rngs, dtype=dtype) if answers else None
        self.log_scale = None if answers else nnx.Param(jnp.asarray(math.log(1 / 0.07), dtype))
        self.rate = m.text.hidden_dropout_prob

    def pictures(self, pixels: UInt8[Array, "B Y X 3"]) -> Float[Array, "B D"]:
        """Vectors of pictures."""
        return self.from_picture(self.vision(pixels.astype(jnp.float32) / 127.5 - 1))

    def texts(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], key: Array | None) -> Float[Array, "B D"]:
        """Vectors of texts."""
        return self.from_text(self.text(tokens, mask, None, key)[:, 0])


@dataclasses.dataclass(frozen=True)
class PictureTextModel:
    """The model as pure functions; equal ones are equal.

    Attributes:
        task: "answers", or "retrieval".
        vision: of the vision tower.
        text: of the text tower.
        width: of the joint space.
        answers: classes, for "answers".
    """

    task: Literal["answers", "retrieval"]
    vision: SiglipConfig
    text: BertConfig
    width: int = 512
    answers: int = 1

    def init(self, key: Array) -> Params:
        """Fresh parameters: vision, text, from_picture, from_text, and head or log_scale."""
        return nnx.to_pure_dict(nnx.state(PictureText(self, rngs=FastRngs(key))))

    def shapes(self) -> Params:
        """The parameters as ``jax.ShapeDtypeStruct``."""
        return _define(self)[1]

    def classify(
        self,
        params: Params,
        pixels: UInt8[Array, "B Y X 3"],
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        key: Array | None = None,
    ) -> Float[Array, "B C"]:
        """Logits of the answers; a key turns the text tower's dropout on, and that before the head.

        Raises:
            UserError: if this is no model of answers.
        """
        module = self._module(params)
        if module.head is None:
            raise UserError("This model finds pictures and captions; to answer questions make one of task 'answers'.")
        text_key, head_key = split(key, 2)
        joined = jnp.tanh(module.pictures(pixels)) * jnp.tanh(module.texts(tokens, mask, text_key))
        return module.head(dropout(joined, module.rate, head_key))

    def pictures(self, params: Params, pixels: UInt8[Array, "B Y X 3"]) -> Float[Array, "B D"]:
        """Unit vectors of pictures."""
        return _unit(self._module(params).pictures(pixels))

    def texts(
        self, params: Params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], key: Array | None = None
    ) -> Float[Array, "B D"]:
        """Unit vectors of texts."""
        return _unit(self._module(params).texts(tokens, mask, key))

    def scale(self, params: Params) -> Float[Array, ""]:
        """What cosines are multiplied by: at most 100."""
        return jnp.exp(jnp.minimum(params["log_scale"], LARGEST_SCALE))

    def _module(self, params: Params) -> PictureText:
        return nnx.merge(_define(self)[0], params)


@functools.cache
def _define(model: PictureTextModel) -> tuple[nnx.GraphDef, Params]:
    return abstract_params(lambda: PictureText(model, rngs=FastRngs(0)))


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)
