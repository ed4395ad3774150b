"""The learned optimizers as optax transformations: a table of rules x contracts."""

import functools
import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_weights

from l2l_jax import (
    dm_transform,
    learned_optimizer,
    longrun_transform,
    rnnprop_init,
    rnnprop_transform,
)
from l2l_jax.lstm import LSTMState, LSTMWeights, lstm_cell

PHI = {
    "rnnprop": random_weights("rnnprop", (4, 3), 5),
    "dm": random_weights("dm", (4, 3)),
    "longrun": random_weights("longrun"),
}
TRANSFORMS = {
    "rnnprop": rnnprop_transform,
    "dm": dm_transform,
    "longrun": longrun_transform,
}
RULES = pytest.mark.parametrize("rule", list(PHI))
NETWORKS = pytest.mark.parametrize("rule", ["rnnprop", "dm"])


class Pair(typing.NamedTuple):
    x: typing.Any
    y: typing.Any


def make(rule, **options):
    return TRANSFORMS[rule](PHI[rule], **options)


def tree():
    return {
        "half": jnp.ones((2, 3), jnp.float16),
        "brain": [jnp.full((4,), 0.5, jnp.bfloat16), None],
        "scalar": jnp.float32(2.0),
        "pair": Pair(jnp.ones((1, 2, 2)), ()),
        "empty": {},
        "masked": optax.MaskedNode(),
        "no elements": jnp.zeros((0, 3)),
    }


def dtypes(x):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x)


@RULES
def test_any_tree_keeps_structure_shapes_and_dtypes(rule):
    tx, theta = make(rule), tree()
    state = tx.init(theta)
    assert jax.tree.structure(jax.eval_shape(tx.init, theta)) == jax.tree.structure(
        state
    )
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, new = update(theta, state)
        assert dtypes(updates) == dtypes(theta)
        assert dtypes(new) == dtypes(state)
        state = new
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
    assert any(jnp.any(u != 0) for u in jax.tree.leaves(updates))


@NETWORKS
def test_the_state_of_the_networks_has_the_shapes_of_the_leaves(rule):
    theta = tree()
    state = jax.eval_shape(make(rule).init, theta)
    for hidden, layer in zip((4, 3), state.lstm, strict=True):
        assert jax.tree.structure(layer.h) == jax.tree.structure(theta)
        for h, p in zip(jax.tree.leaves(layer.h), jax.tree.leaves(theta), strict=True):
            assert h.shape == (hidden, *p.shape)


@RULES
def test_float64_leaves(rule, x64):
    tx, theta = make(rule), {"a": jnp.ones(2, jnp.float64), "b": jnp.ones(2)}
    theta["b"] = theta["b"].astype(jnp.float32)
    updates, state = jax.jit(tx.update)(theta, tx.init(theta))
    last = state.v if rule == "longrun" else state.lstm[0].h
    assert updates["a"].dtype == jnp.float64 == last["a"].dtype
    assert updates["b"].dtype == jnp.float32 == last["b"].dtype


@RULES
def test_gradients_of_another_dtype_than_the_parameters(rule):
    tx, theta = make(rule), jnp.ones(3)
    state = tx.init(theta)
    updates, new = jax.jit(tx.update)(theta.astype(jnp.bfloat16), state)
    assert updates.dtype == jnp.bfloat16
    assert dtypes(new) == dtypes(state)


@NETWORKS
def test_state_dtype_only_rounds_the_state(rule):
    theta = jnp.linspace(-1, 1, 5)
    small, plain = make(rule, state_dtype="bfloat16"), make(rule)
    updates, state = jax.jit(small.update)(theta, small.init(theta))
    assert state.lstm[0].c.dtype == jnp.bfloat16
    assert updates.dtype == jnp.float32
    expected, _ = jax.jit(plain.update)(theta, plain.init(theta))
    np.testing.assert_array_equal(updates, expected)


@RULES
def test_no_second_compilation_and_donation(rule):
    tx, theta = make(rule), {"a": jnp.ones((2, 2)), "b": jnp.float32(1)}
    traces = []

    def update(g, state):
        traces.append(1)
        return tx.update(g, state)

    step = jax.jit(update, donate_argnums=1)
    state = tx.init(theta)
    for _ in range(3):
        _, state = step(theta, state)
    assert len(traces) == 1


@RULES
@pytest.mark.parametrize("shape", [(40, 60), (40_000,)])
def test_outside_of_a_program_a_step_is_compiled_once(rule, shape, caplog):
    """In a row, and chunk by chunk: their loops and calls are not compiled again."""
    tx, g = make(rule), jnp.ones(shape)
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        _, state = tx.update(g, tx.init(g))
        assert "Compiling" in caplog.text
        caplog.clear()
        tx.update(g, state)
        assert "Compiling" not in caplog.text


WRAPPERS = {
    "chain": lambda tx, _: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "masked": lambda tx, _: optax.masked(tx, {"a": True, "b": False}),
    "partition": lambda tx, _: optax.partition(
        {"ours": tx, "sgd": optax.sgd(0.1)}, {"a": "ours", "b": "sgd"}
    ),
    "inject": lambda _, rule: optax.inject_hyperparams(TRANSFORMS[rule])(
        params=PHI[rule], step_size=optax.constant_schedule(0.1)
    ),
    "multi steps": lambda tx, _: optax.MultiSteps(tx, 2).gradient_transformation(),
    "if finite": lambda tx, _: optax.apply_if_finite(tx, 3),
    "flatten": lambda tx, _: optax.flatten(tx),
}


@functools.cache
def two_updates(rule):
    """What the rule alone does in two steps of the same gradients."""
    tx, theta = make(rule), {"a": 0.1 * jnp.ones((2, 2)), "b": jnp.full(3, 0.2)}
    update, state = jax.jit(tx.update), tx.init(theta)
    first, state = update(theta, state)
    return theta, first, update(theta, state)[0]


@pytest.mark.parametrize(
    ("rule", "wrapper"),
    [*(("rnnprop", name) for name in WRAPPERS), ("dm", "masked"), ("dm", "inject")],
)
def test_within_optax(rule, wrapper):
    tx = WRAPPERS[wrapper](make(rule), rule)
    theta, first, second = two_updates(rule)
    state = tx.init(theta)
    step = jax.jit(lambda g, s: tx.update(g, s, None))
    for _ in range(2):
        updates, state = step(theta, state)
    expected = first if wrapper == "multi steps" else second
    np.testing.assert_allclose(updates["a"], expected["a"], rtol=1e-4, atol=1e-7)
    others = {"masked": theta["b"], "partition": -0.1 * theta["b"]}
    np.testing.assert_allclose(
        updates["b"], others.get(wrapper, expected["b"]), rtol=1e-4, atol=1e-7
    )


@RULES
def test_extra_arguments_and_vmap(rule):
    tx = make(rule)
    g = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
    alone = [tx.update(row, tx.init(row), value=jnp.float32(1.0)) for row in g]
    one = jnp.stack([updates for updates, _ in alone])  # not compiled
    many, _ = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))))(g)
    np.testing.assert_allclose(one, many, rtol=1e-6)


@RULES
def test_map_params_finds_the_state(rule):
    tx, theta = make(rule), {"w": jnp.ones((2, 2))}
    doubled = optax.tree.map_params(tx, lambda x: x + 1, tx.init(theta))
    last = doubled.slow if rule == "longrun" else doubled.lstm[1].c
    assert float(last["w"].min()) == 1


@RULES
def test_zero_gradients_give_finite_updates_and_derivatives(rule):
    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(phi, eps, first):
        options = {} if rule == "dm" else {"eps": eps}
        tx = TRANSFORMS[rule](phi, **options)
        theta = jnp.zeros(2)

        def step(carry, t):
            theta, state = carry
            # The second coordinate never has a gradient, the first none for a while.
            g = jnp.where(t < first, 0, 1) * jnp.array([1.0, 0.0]) * (1 + theta)
            updates, state = tx.update(g, state)
            return (theta + updates, state), updates

        _, updates = jax.lax.scan(step, (theta, tx.init(theta)), jnp.arange(8))
        return jnp.sum(updates**2), updates

    for eps, first in itertools.product((1e-8, 0.0), (0, 5)):
        (_, updates), slope = total(PHI[rule], eps, first)
        assert jnp.isfinite(updates).all()
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
        assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(slope))


def test_rnnprop_reduces_to_the_sign_of_its_output():
    """No weight but the read-out's bias: every coordinate moves by -α·tanh(bias)."""
    phi = jax.tree.map(jnp.zeros_like, PHI["rnnprop"])
    phi = phi._replace(output=phi.output._replace(bias=jnp.array([0.5])))
    tx, theta = rnnprop_transform(phi, step_size=0.2), jnp.arange(4.0)
    updates, _ = jax.jit(tx.update)(theta, tx.init(theta))
    np.testing.assert_allclose(updates, -0.2 * np.tanh(0.5) * np.ones(4), rtol=1e-6)


def test_rnnprop_does_not_see_the_scale_of_gradients():
    tx, g = make("rnnprop"), jnp.array([1.0, -3.0, 2.5])
    update = jax.jit(tx.update)
    small, _ = update(g, tx.init(g))
    large, _ = update(1024 * g, tx.init(g))
    np.testing.assert_allclose(small, large, rtol=1e-6)


def test_cell_against_numpy(x64):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(5, 12)), rng.normal(size=12)
    x, c, h = rng.normal(size=2), rng.normal(size=3), rng.normal(size=3)
    gates = np.concatenate([x, h]) @ kernel + bias
    i, j, f, o = gates.reshape(4, 3)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    new_c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
    new_h = sigmoid(o) * np.tanh(new_c)
    weights = LSTMWeights(jnp.asarray(kernel), jnp.asarray(bias))
    state = lstm_cell(
        weights, LSTMState(jnp.asarray(c), jnp.asarray(h)), jnp.asarray(x)
    )
    np.testing.assert_allclose(state.c, new_c, rtol=1e-12)
    np.testing.assert_allclose(state.h, new_h, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: rnnprop_transform(PHI["dm"]), TypeError, "RNNpropParams"),
        (lambda: make("rnnprop", b1=1.0), ValueError, r"b1 .* 1\.0"),
        (lambda: make("rnnprop", b2=-0.1), ValueError, r"b2 .* -0\.1"),
        (lambda: make("rnnprop", step_size=-1), ValueError, "step_size"),
        (lambda: make("dm", p=0), ValueError, "p must"),
        (lambda: make("dm", form="other"), ValueError, "'other'"),
        (lambda: make("dm", state_dtype="int8"), ValueError, "'int8'"),
        (lambda: make("dm", precision="low"), ValueError, "'low'"),
        (lambda: rnnprop_init(jax.random.key(0), (20, 0)), ValueError, r"\(20, 0\)"),
        (
            lambda: dm_transform(PHI["dm"]._replace(lstm=PHI["dm"].lstm[:1])),
            ValueError,
            r"output.kernel must have shape \(4, 1\)",
        ),
        (lambda: make("dm").init({"n": jnp.ones(2, int)}), TypeError, r"\['n'\]"),
        (
            lambda: learned_optimizer("dm", stepsize=1),
            ValueError,
            "'step_s.*'stepsize'",
        ),
        (lambda: learned_optimizer("dm", {"layers": 2}), ValueError, "size of dm must"),
        (lambda: learned_optimizer("dm", step_size=-1), ValueError, r"step_size .* -1"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_what_is_frozen_by_partition_stays_as_it_is():
    """As the page on troubles says; `optax.masked` would add its gradient."""
    theta = {"a": jnp.ones(2), "b": jnp.arange(3.0)}
    kinds = {"learned": make("longrun"), "frozen": optax.set_to_zero()}
    tx = optax.partition(kinds, {"a": "learned", "b": "frozen"})
    updates, _ = tx.update(theta, tx.init(theta))
    found = optax.apply_updates(theta, updates)
    np.testing.assert_array_equal(found["b"], theta["b"])
    assert jnp.all(found["a"] < 1)


OTHER = {"rnnprop": "dm", "dm": "longrun", "longrun": "rnnprop"}


@RULES
def test_what_init_has_not_seen_is_refused_at_update(rule):
    """By path and shapes; most of it would be broadcast."""
    tx, seen = make(rule), {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}
    state = tx.init(seen)
    for path, shape, change in (
        (r"\['a'\]", r"\(2,\)", {"a": jnp.ones(2)}),
        (r"\['a'\]", r"\(\)", {"a": jnp.ones(())}),
        (r"\['c'\]", r"\(2,\)", {"c": jnp.ones(2)}),
        (r"\['b'\]", "none", {"b": None}),
    ):
        with pytest.raises(ValueError, match=f"at {path} the gradient .* {shape}, and"):
            jax.eval_shape(tx.update, seen | change, state)
    for wrong in (seen, make(OTHER[rule]).init(seen), tuple(state)):
        with pytest.raises(
            TypeError, match=r"state in update\(updates, state\) must be"
        ):
            jax.eval_shape(tx.update, seen, wrong)


@NETWORKS
def test_a_state_of_other_weights_is_refused(rule):
    g = jnp.ones(2)
    for sizes, text in (
        ((4,), "2 LSTM layers"),
        ((4, 4), r"\[1\].h .* \(4, 2\), not \(3"),
    ):
        state = TRANSFORMS[rule](random_weights(rule, sizes)).init(g)
        with pytest.raises(ValueError, match=text):
            jax.eval_shape(make(rule).update, g, state)
