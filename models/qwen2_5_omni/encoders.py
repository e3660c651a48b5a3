"""Running the towers: media of any size in a few shapes, so that few programs are compiled."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from acckv_jax import bucket_length
from models.interface import EmbeddedPrompt
from models.layers.init import Params
from models.qwen2_5_omni.audio import AudioBlocks, audio_blocks, audio_tokens
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.images import batches, patch_grid
from models.qwen2_5_omni.prompt import Tokens, check_features
from models.qwen2_5_omni.vision import GridPlan, grid_plan

TIMES = 4
"""Temporal patches per call of the vision tower."""
WINDOWS = 4
"""Least number of windows that grids are padded to."""
BLOCKS = 4
"""Blocks of sound that lengths are rounded up to."""


@functools.partial(jax.jit, static_argnums=0)
def _see(graph: nnx.GraphDef, params: Params, patches: Float[Array, "B P V"], plan: GridPlan) -> Float[Array, "B Q D"]:
    return nnx.merge(graph, params).vision(patches, plan)


@functools.partial(jax.jit, static_argnums=0)
def _hear(graph: nnx.GraphDef, params: Params, blocks: AudioBlocks) -> Float[Array, "A D"]:
    return nnx.merge(graph, params).audio(blocks)


@functools.partial(jax.jit, static_argnums=0)
def _embed(graph: nnx.GraphDef, params: Params, *inputs: Array) -> Float[Array, "B T D"]:
    return nnx.merge(graph, params).embed(*inputs)


def embed_prompt(
    graph: nnx.GraphDef,
    params: Params,
    tokens: Tokens,
    video: Sequence[Float[np.ndarray, "V D"]] = (),
    audio: Sequence[Float[np.ndarray, "A D"]] = (),
) -> EmbeddedPrompt:
    """A prompt with its media in it, from the features of all its pictures and videos, and of all its sounds.

    Raises:
        UserError: if there are more or fewer features than the prompt has tokens for.
    """
    check_features(tokens, sum(map(len, video)), sum(map(len, audio)))
    room = bucket_length(len(tokens))
    width = params["decoder"]["tokens"]["embedding"].shape[1]
    features = [np.concatenate([np.zeros((0, width), np.float32), *kind]) for kind in (video, audio)]
    padded = [np.pad(kind, ((0, room - len(kind)), (0, 0))) for kind in features]
    arrays = [np.pad(x, (0, room - len(tokens)))[None] for x in (tokens.ids, tokens.modality, tokens.row)]
    embedded = np.asarray(_embed(graph, params, *arrays, *padded))[0, : len(tokens)]
    return EmbeddedPrompt(embedded, tokens.modality, tokens.positions, tokens.delta)


def encode_frames(
    graph: nnx.GraphDef, params: Params, config: ThinkerConfig, frames: UInt8[np.ndarray, "n y x 3"]
) -> Float[np.ndarray, "V D"]:
    """Vision features of one picture or video, in the order of its tokens; its sides are whole merge units."""
    times, height, width = patch_grid(frames.shape, config.vision)
    plan = grid_plan(height, width, config.vision)
    room, windows = bucket_length(height * width), bucket_length(len(plan.windows), minimum=WINDOWS)
    plan = grid_plan(height, width, config.vision, patches=room, windows=windows)
    tokens = height * width // config.vision.spatial_merge_size**2
    encoded = []
    for patches in batches(frames, config.vision, TIMES):
        padded = np.pad(patches, ((0, 0), (0, room - height * width), (0, 0)))
        encoded.append(np.asarray(_see(graph, params, padded, plan))[:, :tokens])
    return np.concatenate(encoded)[:times].reshape(times * tokens, -1)


def encode_sound(
    graph: nnx.GraphDef, params: Params, config: ThinkerConfig, mel: Float[np.ndarray, "M frames"]
) -> Float[np.ndarray, "A D"]:
    """Audio features of one sound, of which the log-mel spectrogram is given."""
    count = -(-mel.shape[1] // (2 * config.audio.n_window))
    blocks = audio_blocks([mel], config.audio, blocks=-(-count // BLOCKS) * BLOCKS)
    return np.asarray(_hear(graph, params, blocks))[: audio_tokens(mel.shape[1])]
