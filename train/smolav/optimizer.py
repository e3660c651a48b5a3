"""AdamW over the trained parameters, with a learning rate per stage."""

import jax
import optax

from models.layers.init import Params
from train.smolav.config import TrainConfig


def schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then half a cosine from `rate` to `rate_end` in every stage."""
    parts = [
        optax.cosine_decay_schedule(stage.rate, max(stage.steps, 1), alpha=stage.rate_end / stage.rate)
        for stage in config.stages
    ]
    ends = [sum(stage.steps for stage in config.stages[: i + 1]) for i in range(len(config.stages) - 1)]
    joined = optax.join_schedules(parts, ends)
    return lambda step: joined(step) * jax.numpy.minimum(1.0, (step + 1) / max(config.warmup, 1))


def optimizer(config: TrainConfig, trained: Params) -> optax.GradientTransformation:
    """AdamW with clipping; weight decay on matrices only, projectors at `media_rate` times the learning rate."""
    rate = schedule(config)
    matrices = jax.tree.map(lambda p: p.ndim > 1, trained)
    factors = {"media": config.media_rate, "lora": 1.0}
    scales = {name: jax.tree.map(lambda _, f=factors[name]: f, part) for name, part in trained.items()}
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b2=0.99),
        optax.add_decayed_weights(config.weight_decay, matrices),
        optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales)),
        optax.scale_by_learning_rate(rate),
    )
