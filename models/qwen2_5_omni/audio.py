"""The audio tower of Qwen2.5-Omni (arXiv 2503.20215, section 2.2): a Whisper encoder that attends in blocks of 2 s."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from models.audio.whisper import EPSILON, WhisperLayer
from models.hf.tensors import Tensor, Tensors, conv, linear, norm, of_layer
from models.layers.linear import Linear
from models.layers.norm import LayerNorm
from models.layers.stacked import run_stacked, stacked
from models.qwen2_5_omni.config import AudioConfig
from models.qwen2_5_omni.positions import audio_tokens


class AudioBlocks(NamedTuple):
    """The mel frames of one or more sounds, cut into blocks; host arrays.

    Attributes:
        mel: blocks of 2 * n_window = F frames, zero where a sound has ended.
        lengths: real frames of each block.
        pairs: for each token the two encoded frames that it averages, as indices into all blocks' F/2 each. Tokens
            stand in the sounds' order; those beyond the sum of the sounds' `audio_tokens` are padding.
    """

    mel: Float[np.ndarray, "W M F"]
    lengths: Int[np.ndarray, " W"]
    pairs: Int[np.ndarray, "A 2"]


def audio_blocks(mels: Sequence[Float[np.ndarray, "M frames"]], config: AudioConfig, *, blocks: int = 0) -> AudioBlocks:
    """Cuts sounds into blocks.

    Shapes depend on the number of blocks only, so that sounds padded to one number of blocks share a compiled program.

    Args:
        mels: log-mel features of each sound, of at least one frame.
        config: sizes.
        blocks: blocks to pad to, if there are fewer.

    Raises:
        ValueError: if a sound's features do not fit the configuration.
    """
    size, half = 2 * config.n_window, config.n_window
    for mel in mels:
        if mel.ndim != 2 or len(mel) != config.num_mel_bins or mel.shape[1] == 0:
            raise ValueError(
                f"Log-mel features are [{config.num_mel_bins}, frames], not {mel.shape}; compute them anew."
            )
    counts = [-(-mel.shape[1] // size) for mel in mels]
    total = max(sum(counts), blocks)
    out = AudioBlocks(
        mel=np.zeros((total, config.num_mel_bins, size), np.float32),
        lengths=np.zeros(total, np.int32),
        pairs=np.zeros((total * half // 2, 2), np.int32),
    )
    block = token = 0
    for mel, count in zip(mels, counts, strict=True):
        frames = mel.shape[1]
        padded = np.pad(mel, ((0, 0), (0, count * size - frames)))
        out.mel[block : block + count] = padded.reshape(len(mel), count, size).swapaxes(0, 1)
        out.lengths[block : block + count] = np.minimum(frames - size * np.arange(count), size)
        tokens = audio_tokens(frames)
        # A block of F frames gives F/2, so frame i of a sound's encoded ones is frame i of its blocks' F/2 each.
        out.pairs[token : token + tokens] = block * half + np.arange(2 * tokens).reshape(tokens, 2)
        block, token = block + count, token + tokens
    return out


class AudioTower(nnx.Module):
    """Two convolutions, layers that attend within a block, and tokens of two frames each."""

    def __init__(self, config: AudioConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        c = config
        self.config = c
        shared = {"rngs": rngs, "dtype": dtype}
        self.conv1 = nnx.Conv(c.num_mel_bins, c.d_model, (3,), padding=1, param_dtype=dtype, rngs=rngs)
        self.conv2 = nnx.Conv(c.d_model, c.d_model, (3,), strides=2, padding=1, param_dtype=dtype, rngs=rngs)
        self.layers = stacked(
            lambda: WhisperLayer(c.d_model, c.encoder_attention_heads, c.encoder_ffn_dim, **shared), c.encoder_layers
        )
        self.norm = LayerNorm(c.d_model, epsilon=EPSILON, dtype=dtype)
        self.proj = Linear(c.d_model, c.output_dim, use_bias=True, **shared)
        self.bos_eos = nnx.Param(jnp.zeros((2, c.output_dim), dtype))  # in the checkpoints, but used by no thinker

    def __call__(self, blocks: AudioBlocks) -> Float[Array, "A O"]:
        """Encodes blocks to tokens for the decoder; rows beyond the sounds' `audio_tokens` are meaningless."""
        c = self.config
        lengths = jnp.asarray(blocks.lengths)
        real = jnp.arange(2 * c.n_window)[None] < lengths[:, None]
        x = jnp.asarray(blocks.mel).astype(self.proj.kernel.dtype).swapaxes(1, 2)
        x = jax.nn.gelu(self.conv1(x), approximate=False) * real[:, :, None].astype(x.dtype)
        x = jax.nn.gelu(self.conv2(x), approximate=False)
        x = x + sinusoids(c.n_window, c.d_model).astype(x.dtype)[None]
        x = run_stacked(self.layers, x, lambda layer, x: layer(x, (lengths + 1) // 2))
        x = x.reshape(-1, c.d_model)[blocks.pairs].mean(axis=1)
        return self.proj(self.norm(x))


def sinusoids(length: int, channels: int) -> Float[Array, "length channels"]:
    """Sines and cosines of positions, with periods in a geometric series from 2 pi to 20,000 pi."""
    half = channels // 2
    rates = jnp.exp(-np.log(10_000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def audio_tensors(config: AudioConfig) -> Tensors:
    """A checkpoint's tensors below `audio_tower.`, and our parameters below "audio"."""
    at = "audio_tower."
    out: Tensors = {f"{at}audio_bos_eos_token.weight": Tensor(("audio", "bos_eos"))}
    for name in ("conv1", "conv2"):
        out |= conv(at + name, ("audio", name), 1, bias=True)
    for i in range(config.encoder_layers):
        name, path = f"{at}layers.{i}.", ("audio", "layers")
        layer = linear(f"{name}fc1", (*path, "up"), bias=True) | linear(f"{name}fc2", (*path, "down"), bias=True)
        for theirs, ours in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "out")):
            layer |= linear(f"{name}self_attn.{theirs}", (*path, "attn", ours), bias=ours != "k")
        for theirs, ours in (("self_attn_layer_norm", "attn_norm"), ("final_layer_norm", "mlp_norm")):
            layer |= norm(name + theirs, (*path, ours), bias=True)
        out |= of_layer(i, layer)
    return out | norm(f"{at}ln_post", ("audio", "norm"), bias=True) | linear(f"{at}proj", ("audio", "proj"), bias=True)
