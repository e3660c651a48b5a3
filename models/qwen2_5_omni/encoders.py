"""Running the towers: media of any size in a few shapes, so that few programs are compiled."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from acckv_jax import Modality, bucket_length
from models.batching import joined
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
"""Buckets of blocks of sound are multiples of this."""


@functools.partial(jax.jit, static_argnums=0)
def _see(graph: nnx.GraphDef, params: Params, patches: Float[Array, "B P V"], plan: GridPlan) -> Float[Array, "B*Q D"]:
    encoded = nnx.merge(graph, params).vision(patches, plan)
    return encoded.reshape(-1, encoded.shape[-1])


@functools.partial(jax.jit, static_argnums=0)
def _hear(graph: nnx.GraphDef, params: Params, blocks: AudioBlocks) -> Float[Array, "A D"]:
    return nnx.merge(graph, params).audio(blocks)


@dataclasses.dataclass(frozen=True)
class Features:
    """What a tower makes of one picture, video or sound.

    Attributes:
        values: [S, D] on the device.
        rows: of each of its V tokens, in order, its row of `values`; the others are padding.
    """

    values: Float[Array, "S D"]
    rows: Int[np.ndarray, " V"]

    def __len__(self) -> int:
        return len(self.rows)


def place_features(
    text: EmbeddedPrompt, tokens: Tokens, video: Sequence[Features] = (), audio: Sequence[Features] = ()
) -> EmbeddedPrompt:
    """A prompt with its media in it.

    Args:
        text: the prompt's text, embedded.
        tokens: the prompt.
        video: features of all its pictures and videos, in the order of the prompt.
        audio: features of all its sounds, in the order of the prompt.

    Raises:
        UserError: if there are more or fewer features than the prompt has tokens for.
    """
    check_features(tokens, sum(map(len, video)), sum(map(len, audio)))
    buffers, rows = [*text.buffers], np.zeros(len(tokens), np.int64)
    rows[tokens.modality == Modality.TEXT] = text.rows
    for kind, several in ((Modality.VIDEO, video), (Modality.AUDIO, audio)):
        found = [np.zeros(0, np.int64)]
        for features in several:
            found.append(features.rows + sum(map(len, buffers)))
            buffers.append(features.values)
        rows[tokens.modality == kind] = np.concatenate(found)
    return EmbeddedPrompt(tuple(buffers), rows, tokens.modality, tokens.positions, tokens.delta)


def encode_frames(
    graph: nnx.GraphDef, params: Params, config: ThinkerConfig, frames: UInt8[np.ndarray, "n y x 3"]
) -> Features:
    """Vision features of one picture or video; its sides are whole merge units."""
    times, height, width = patch_grid(frames.shape, config.vision)
    plan = grid_plan(height, width, config.vision)
    room, windows = bucket_length(height * width), bucket_length(len(plan.windows), minimum=WINDOWS)
    plan = grid_plan(height, width, config.vision, patches=room, windows=windows)
    encoded = []
    for patches in batches(frames, config.vision, TIMES):
        padded = np.pad(patches, ((0, 0), (0, room - height * width), (0, 0)))
        encoded.append(_see(graph, params, padded, plan))
    merged = config.vision.spatial_merge_size**2
    rows = np.arange(times)[:, None] * (room // merged) + np.arange(height * width // merged)
    return Features(joined(encoded), rows.ravel())


def encode_sound(
    graph: nnx.GraphDef, params: Params, config: ThinkerConfig, mel: Float[np.ndarray, "M frames"]
) -> Features:
    """Audio features of one sound, of which the log-mel spectrogram is given."""
    count = bucket_length(-(-mel.shape[1] // (2 * config.audio.n_window)), minimum=BLOCKS)
    blocks = audio_blocks([mel], config.audio, blocks=-(-count // BLOCKS) * BLOCKS)
    return Features(_hear(graph, params, blocks), np.arange(audio_tokens(mel.shape[1])))
