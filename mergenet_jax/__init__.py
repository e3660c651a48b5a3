"""MergeNet in JAX: knowledge goes from one model's parameters into another's while both are trained.

Knows pytrees only: two (or more) losses, their parameters, and pairs of paths.

>>> import optax
>>> import mergenet_jax as mn
>>> def loss(params, state, batch, key):
...     return jnp.mean((batch @ params["head"]) ** 2), mn.LossOutput()
>>> learner = mn.Learner(loss, optax.sgd(0.1))
>>> learners = {"teacher": learner, "student": learner}
>>> pair = mn.Pair("head", "head")
>>> config = mn.MergeConfig.plus(layers=1)
>>> transfers = (mn.Transfer("teacher", "student", (pair,), config, optimizer=optax.sgd(1e-2)),)
>>> params = {"teacher": {"head": jnp.ones((6, 3))}, "student": {"head": jnp.ones((4, 3))}}
>>> state = mn.init_state(learners, transfers, params, jax.random.key(0))
>>> step = mn.make_train_step(learners, transfers)
>>> batches = {"teacher": jnp.ones((8, 6)), "student": jnp.ones((8, 4))}
>>> state, metrics = step(state, batches)
>>> sorted(metrics)
['student', 'teacher', 'teacher->student']
>>> mn.export(state, "student")["head"].shape
(4, 3)

The examples of single functions continue this one.
"""

from mergenet_jax.adapter import apply_adapter, init_adapter
from mergenet_jax.config import PRESETS, MergeConfig
from mergenet_jax.learner import Learner, LossOutput, ModelState
from mergenet_jax.low_rank import Factored, materialise
from mergenet_jax.paths import leaf_names
from mergenet_jax.sharding import state_shardings
from mergenet_jax.split import Halves, make_split_step, split_state
from mergenet_jax.state import AdapterState, MergeState, export, init_state
from mergenet_jax.step import check_finite, make_train_step, train_step
from mergenet_jax.transfer import Pair, Transfer, read

__all__ = [
    "PRESETS",
    "AdapterState",
    "Factored",
    "Halves",
    "Learner",
    "LossOutput",
    "MergeConfig",
    "MergeState",
    "ModelState",
    "Pair",
    "Transfer",
    "apply_adapter",
    "check_finite",
    "export",
    "init_adapter",
    "init_state",
    "leaf_names",
    "make_split_step",
    "make_train_step",
    "materialise",
    "read",
    "split_state",
    "state_shardings",
    "train_step",
]
