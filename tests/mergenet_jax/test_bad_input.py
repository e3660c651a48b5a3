"""Every mistake in a setup is one clear sentence, told before anything is compiled."""

import jax
import jax.numpy as jnp
import pytest

import mergenet_jax as mn
from mergenet_jax.paths import leaf_names
from tests.mergenet_jax.learners import batch, learner, perceptron

KEY = jax.random.key(0)
HEADS = mn.Pair("head/kernel", "head/kernel")
HIDDEN = mn.Pair("hidden/kernel", "hidden/kernel")
INWARD = mn.Pair("head/kernel", "head/kernel", "in")  # type: ignore[arg-type]
TURNED = mn.Pair("hidden/kernel", "head/kernel")


def setup(
    pairs=(HEADS,), source="teacher", target="student", learners=None, params=None, more=(), states=None, **options
):
    learners = learners or {"teacher": learner(), "student": learner()}
    params = params or {"teacher": perceptron(0, 12), "student": perceptron(1, 6)}
    transfers = (mn.Transfer(source, target, pairs, mn.MergeConfig(**options)), *more)
    return jax.eval_shape(lambda: mn.init_state(learners, transfers, params, KEY, states=states))


def test_the_setup_itself_is_right():
    assert setup().step.shape == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pairs": (mn.Pair("head/kernel", "tail/kernel"),)}, "no parameter is named 'tail/kernel'; names look like"),
        ({"pairs": (mn.Pair("*/kernel", "head/kernel"),)}, r"'\*/kernel' names 2 parameters"),
        ({"pairs": ()}, "teacher->student has no pairs"),
        ({"pairs": (HEADS, HEADS)}, "head/kernel and head/kernel of student are one parameter"),
        ({"pairs": (mn.Pair("head/kernel", "head/bias"),)}, r"head/bias: a parameter of shape \(4,\) is no matrix"),
        ({"source": "nobody"}, "names no model 'nobody'; models are teacher, student"),
        ({"source": "student"}, "head/kernel of student cannot be its own source"),
        ({"learners": {"teacher": learner(), "student": None}}, "writes 'student', which is frozen"),
        ({"learners": {"student": learner()}}, "parameters of teacher, student, but learners are student"),
        ({"encoding": "svd", "rank": 5}, "head/kernel: rank 5 is more than a matrix of 4 x 12 holds; use at most 4"),
        ({"heads": 200}, "200 heads are too many"),
        (
            {"more": (mn.Transfer("teacher", "student", (HIDDEN,)),)},
            "several transfers teacher->student; put their pairs",
        ),
        ({"more": (mn.Transfer("student", "student", (TURNED,)),)}, "head/kernel and head/kernel of student are one"),
        ({"pairs": HEADS}, "pairs of a transfer must be a tuple of Pair, not Pair"),
        ({"pairs": ("head/kernel",)}, "pairs of a transfer must be a tuple of Pair"),
        ({"pairs": (INWARD,)}, "layout of head/kernel must be one of in_out, out_in, not 'in'"),
        ({"states": {"pupil": {}}}, "there are states of pupil, but learners are teacher, student"),
        ({"positions": "yes"}, "positions must be a bool, not 'yes'"),
        ({"clip": "much"}, "clip must be a float, not 'much'"),
        ({"cycle": 0}, "cycle must be an integer of at least 1, not 0"),
        ({"cycle": 1.5}, "cycle must be an integer of at least 1, not 1.5"),
        ({"rule": "gamma"}, "rule must be one of delta, delta_k, exact, not 'gamma'"),
        ({"encoding": "sparse"}, "encoding must be one of dense, factored, svd, not 'sparse'"),
        ({"inner_steps": 2}, "inner_steps=2 needs rule='delta_k'"),
        ({"rule": "delta_k", "inner_steps": 3}, r"inner_steps \(3\) cannot pass cycle \(2\)"),
        ({"merge": "gated", "rescale": "row_norm"}, "rescale='row_norm' has no meaning for merge='gated'"),
        ({"attention_dropout": 1.0}, "attention_dropout must be at least 0 and below 1, not 1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number of at least 0, not nan"),
    ],
)
def test_mistakes(changes, sentence):
    with pytest.raises(ValueError, match=sentence) as told:
        setup(**changes)
    assert "\n" not in str(told.value)


def test_integers_cannot_be_transferred():
    params = {"teacher": perceptron(0, 12), "student": perceptron(1, 6)}
    params["teacher"]["head"]["kernel"] = jnp.ones((12, 4), jnp.int8)
    with pytest.raises(ValueError, match="head/kernel is of type int8; only floating-point"):
        setup(params=params, learners={"teacher": None, "student": learner()})


def test_shared_buffers():
    """All of the state is donated: an array that two models share would be given away twice."""
    teacher = perceptron(0, 12)
    learners = {"teacher": learner(), "student": learner()}
    transfers = (mn.Transfer("teacher", "student", (HEADS,)),)
    with pytest.raises(ValueError, match=r"of student shares its buffer with .* of teacher; copy one"):
        mn.init_state(learners, transfers, {"teacher": teacher, "student": dict(teacher)}, KEY)


def test_shared_states():
    params, shared = {"teacher": perceptron(0, 12), "student": perceptron(1, 6)}, {"mean": jnp.ones(4)}
    learners = {"teacher": learner(), "student": learner()}
    transfers = (mn.Transfer("teacher", "student", (HEADS,)),)
    states = {"teacher": shared, "student": dict(shared)}
    with pytest.raises(ValueError, match="mean of student's state shares its buffer with mean of teacher's state"):
        mn.init_state(learners, transfers, params, KEY, states=states)
    with pytest.raises(ValueError, match="transfers must be a tuple of Transfer, not a Transfer"):
        mn.init_state(learners, transfers[0], params, KEY)  # type: ignore[arg-type]


def test_a_model_without_a_batch():
    learners = {"teacher": learner(), "student": learner()}
    step = mn.make_train_step(learners, (mn.Transfer("teacher", "student", (HEADS,)),))
    with pytest.raises(ValueError, match="there is no batch for student"):
        jax.eval_shape(step, setup(), {"teacher": batch(0)})


def test_a_name_that_nnx_uses_too():
    """Of a dict "value" is a name like any other."""
    assert leaf_names({"attn": {"query": 1, "value": 2}}) == ["attn/query", "attn/value"]


def test_a_leaf_that_is_factored_otherwise():
    for other, form in ((mn.MergeConfig(encoding="svd", rank=3), "in factors of rank 3"), (mn.MergeConfig(), "dense")):
        more = (mn.Transfer("student", "teacher", (HEADS,), other),)
        with pytest.raises(ValueError, match=f"is in factors of rank 2, but student->teacher wants it {form}"):
            setup(more=more, encoding="svd", rank=2)


def test_export_of_an_unknown_model():
    with pytest.raises(ValueError, match="there is no model 'x'; models are student, teacher"):
        mn.export(setup(), "x")


def test_old_names_answer_with_a_sentence():
    with pytest.raises(ValueError, match="start of MergeConfig is now init_from_source: True for 'source', False for"):
        mn.MergeConfig.plus(start="source")
    with pytest.raises(ValueError, match="start_pairs of Transfer is now init_pairs"):
        mn.Transfer("teacher", "student", (HEADS,), start_pairs=(HIDDEN,))
    with pytest.raises(AttributeError, match="starting of Transfer is now copied_pairs"):
        mn.Transfer("teacher", "student", (HEADS,)).starting  # noqa: B018
