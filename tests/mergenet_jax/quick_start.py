"""MergeNet added to an optax training loop: what was there stays, the rest is marked +."""

import jax
import optax

import mergenet_jax as mn  # +


def init(key, width):
    first, second = jax.random.split(key)
    return {"hidden": jax.random.normal(first, (8, width)) / 3, "head": jax.random.normal(second, (width, 4)) / 4}


def loss(params, batch):
    logits = jax.nn.relu(batch["x"] @ params["hidden"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def data(step):
    x = jax.random.normal(jax.random.key(step), (64, 8))
    return {"x": x, "y": (x @ jax.random.normal(jax.random.key(99), (8, 4))).argmax(-1)}


learner = mn.Learner(lambda params, state, batch, key: (loss(params, batch), mn.LossOutput()), optax.adam(1e-2))  # +
learners = {"teacher": learner, "student": learner}  # +
transfers = (mn.Transfer("teacher", "student", (mn.Pair("head", "head"),), mn.MergeConfig.plus()),)  # +
params = {"teacher": init(jax.random.key(0), 64), "student": init(jax.random.key(1), 16)}
state = mn.init_state(learners, transfers, params, jax.random.key(2))  # + in place of optimizer.init
step = mn.make_train_step(learners, transfers)  # + in place of the jitted step
for number in range(100):
    batch = data(number)
    state, metrics = step(state, {"teacher": batch, "student": batch})
print(f"student {loss(mn.export(state, 'student'), data(1000)):.3f}, transfer {metrics['teacher->student']}")
