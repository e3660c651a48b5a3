"""The vision tower of Qwen2.5-Omni (arXiv 2503.20215; as in Qwen2.5-VL, arXiv 2502.13923, section 2.1.1).

Nothing in it looks across time, so a clip is a batch of temporal patches: pairs of frames of one size. Patches stay in
the order in which they come (the four of a merge unit together, units row by row); only the blocks with windows gather
them by window, and back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.sharding import ShardingRules
from models.hf.tensors import Tensor, Tensors, linear, norm, of_layer
from models.layers.attention import attend
from models.layers.linear import Linear
from models.layers.mlp import SwiGLU
from models.layers.norm import RMSNorm
from models.layers.rope import Rotation, rotate
from models.layers.stacked import run_stacked, stacked
from models.qwen2_5_omni.config import VisionConfig

EPSILON = 1e-6
THETA = 1e4
WHOLE = ShardingRules(batch=None, heads=None, mlp=None, vocab=None)  # every device computes all of the tower


class GridPlan(NamedTuple):
    """Which patches stand where, and in which windows; host arrays, of P patches and W windows with room for U each.

    Attributes:
        positions: row and column of each patch.
        count: how many patches there are; the others of P are padding.
        windows: the patches of each window, real ones first.
        lengths: how many patches of each window are real.
        back: where in `windows`, flattened, each patch stands.
    """

    positions: Int[np.ndarray, "P 2"]
    count: Int[np.ndarray, ""]
    windows: Int[np.ndarray, "W U"]
    lengths: Int[np.ndarray, " W"]
    back: Int[np.ndarray, " P"]


def grid_plan(height: int, width: int, config: VisionConfig, *, patches: int = 0, windows: int = 0) -> GridPlan:
    """The plan of a grid of height x width patches.

    Grids whose plans have equal shapes share a compiled program.

    Args:
        height: rows of patches.
        width: columns of patches.
        config: sizes.
        patches: patches to pad to, if there are fewer; a multiple of the patches of a merge unit.
        windows: windows to pad to, if there are fewer.

    Raises:
        ValueError: if the grid cannot be divided into merge units.
    """
    merge = config.spatial_merge_size
    if height % merge or width % merge or height <= 0 or width <= 0:
        raise ValueError(
            f"A grid of {height} x {width} patches is not made of {merge} x {merge} units; resize the frame."
        )
    units = np.arange(height * width // merge**2).reshape(height // merge, width // merge)
    side = config.window_size // config.patch_size // merge
    blocks = [
        (units[row : row + side, column : column + side].reshape(-1, 1) * merge**2 + np.arange(merge**2)).ravel()
        for row in range(0, units.shape[0], side)
        for column in range(0, units.shape[1], side)
    ]
    count, room = height * width, (side * merge) ** 2
    plan = GridPlan(
        positions=np.zeros((max(count, patches), 2), np.int32),
        count=np.array(count, np.int32),
        windows=np.zeros((max(len(blocks), windows), room), np.int32),
        lengths=np.zeros(max(len(blocks), windows), np.int32),
        back=np.zeros(max(count, patches), np.int32),
    )
    grid = np.indices((height, width)).reshape(2, height // merge, merge, width // merge, merge)
    plan.positions[:count] = grid.transpose(1, 3, 2, 4, 0).reshape(count, 2)
    for number, block in enumerate(blocks):
        plan.windows[number, : len(block)] = block
        plan.lengths[number] = len(block)
        plan.back[block] = number * room + np.arange(len(block))
    return plan


class VisionAttention(nnx.Module):
    """Attention among all patches of a temporal patch, or among those of a window."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        d = config.hidden_size
        self.q, self.k, self.v, self.out = (Linear(d, d, use_bias=True, rngs=rngs, dtype=dtype) for _ in range(4))
        self.heads = config.num_heads

    def __call__(
        self, x: Float[Array, "B P D"], windowed: Bool[Array, ""], table: Rotation, plan: GridPlan
    ) -> Float[Array, "B P D"]:
        """Applies the layer."""
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, -1) for p in (self.q, self.k, self.v))
        out = jax.lax.cond(windowed, _attend_in_windows, _attend_to_all, rotate(q, table), rotate(k, table), v, plan)
        return self.out(out.reshape(x.shape))


def _attend_to_all(
    q: Float[Array, "B P N H"], k: Float[Array, "B P N H"], v: Float[Array, "B P N H"], plan: GridPlan
) -> Float[Array, "B P N H"]:
    return attend(q, k, v, jnp.full(len(q), plan.count))


def _attend_in_windows(
    q: Float[Array, "B P N H"], k: Float[Array, "B P N H"], v: Float[Array, "B P N H"], plan: GridPlan
) -> Float[Array, "B P N H"]:
    # [B, P, N, H] to [B * W, U, N, H]: a window is a row of its own.
    batch, (number, room) = len(q), plan.windows.shape
    q, k, v = (a[:, plan.windows].reshape(batch * number, room, *a.shape[2:]) for a in (q, k, v))
    out = attend(q, k, v, jnp.tile(plan.lengths, batch))
    return out.reshape(batch, number * room, *out.shape[2:])[:, plan.back]


class VisionBlock(nnx.Module):
    """Pre-norm attention and SwiGLU with biases."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        d = config.hidden_size
        self.attn_norm = RMSNorm(d, epsilon=EPSILON, dtype=dtype)
        self.attn = VisionAttention(config, rngs=rngs, dtype=dtype)
        self.mlp_norm = RMSNorm(d, epsilon=EPSILON, dtype=dtype)
        self.mlp = SwiGLU(d, config.intermediate_size, use_bias=True, rules=WHOLE, rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "B P D"], windowed: Bool[Array, ""], table: Rotation, plan: GridPlan
    ) -> Float[Array, "B P D"]:
        """Applies the block."""
        x = x + self.attn(self.attn_norm(x), windowed, table, plan)
        return x + self.mlp(self.mlp_norm(x))


class VisionTower(nnx.Module):
    """Patch embedding, blocks, and the merger of each unit of patches into one token of the decoder."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        c = config
        self.config = c
        merged = c.hidden_size * c.spatial_merge_size**2
        shared = {"rngs": rngs, "dtype": dtype}
        self.patch_embed = Linear(c.in_channels * c.temporal_patch_size * c.patch_size**2, c.hidden_size, **shared)
        self.blocks = stacked(lambda: VisionBlock(c, **shared), c.depth)
        self.merger_norm = RMSNorm(c.hidden_size, epsilon=EPSILON, dtype=dtype)
        self.merger_up = Linear(merged, merged, use_bias=True, **shared)
        self.merger_down = Linear(merged, c.out_hidden_size, use_bias=True, **shared)

    def __call__(self, patches: Float[Array, "B P V"], plan: GridPlan) -> Float[Array, "B P/4 O"]:
        """Encodes temporal patches of one grid.

        Args:
            patches: [B, P, V] normalised pixels, V = channels x 2 frames x patch x patch, from `images.patchify`.
            plan: of the grid; its P is that of the patches. Rows of the result beyond its count are meaningless.

        Returns:
            Tokens for the decoder, units row by row.
        """
        c = self.config
        x = self.patch_embed(patches.astype(self.patch_embed.kernel.dtype))
        size = c.hidden_size // c.num_heads
        frequencies = 1.0 / THETA ** (jnp.arange(0, size // 2, 2, dtype=jnp.float32) / (size // 2))
        angles = jnp.asarray(plan.positions, jnp.float32)[:, :, None] * frequencies.reshape(1, 1, -1)
        angles = angles.reshape(1, -1, size // 2)  # rows in the first half, columns in the second
        table = jnp.cos(angles), jnp.sin(angles)
        windowed = ~np.isin(np.arange(c.depth), c.fullatt_block_indexes)
        x = run_stacked(self.blocks, x, lambda block, x, windowed: block(x, windowed, table, plan), windowed)
        x = self.merger_norm(x).reshape(x.shape[0], -1, c.hidden_size * c.spatial_merge_size**2)
        return self.merger_down(jax.nn.gelu(self.merger_up(x), approximate=False))


def vision_tensors(config: VisionConfig) -> Tensors:
    """A checkpoint's tensors below `visual.`, and our parameters below "vision"."""
    c = config
    at = "visual."
    kernel = (c.hidden_size, c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
    out: Tensors = {f"{at}patch_embed.proj.weight": Tensor(("vision", "patch_embed", "kernel"), (1, 0), kernel)}
    for i in range(c.depth):
        name, path = f"{at}blocks.{i}.", ("vision", "blocks")
        block = norm(f"{name}norm1", (*path, "attn_norm")) | norm(f"{name}norm2", (*path, "mlp_norm"))
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("proj", "out")):
            block |= linear(f"{name}attn.{theirs}", (*path, "attn", ours), bias=True)
        for part in ("gate", "up", "down"):
            block |= linear(f"{name}mlp.{part}_proj", (*path, "mlp", part), bias=True)
        out |= of_layer(i, block)
    out |= norm(f"{at}merger.ln_q", ("vision", "merger_norm"))
    out |= linear(f"{at}merger.mlp.0", ("vision", "merger_up"), bias=True)
    return out | linear(f"{at}merger.mlp.2", ("vision", "merger_down"), bias=True)
