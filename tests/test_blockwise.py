"""The fast meta-gradient and the fast cell are the plain ones, but for rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_weights

from l2l_jax import (
    LearnedOptimizer,
    Task,
    learned_optimizer,
    meta_gradient,
    meta_trainer,
    no_batches,
    quadratic_task,
    start_episode,
)
from l2l_jax.blockwise import blockwise_meta_gradient, on_vector
from l2l_jax.fused import elu, fused_cell
from l2l_jax.lstm import LSTMState, LSTMWeights, lstm_cell

pytestmark = pytest.mark.usefixtures("optimized")

# Not a parabola, so that gradients matter; nothing random, so that it compiles fast.
TASK = Task(
    (),
    lambda key: (),
    lambda key, instance: {"a": jnp.linspace(-1.0, 1.0, 8), "b": jnp.ones((5, 1))},
    no_batches,
    lambda p, data, instance, batch: (
        jnp.sum(jnp.cosh(p["a"] - 0.3)) + 3 * jnp.sum(p["b"] ** 2)
    ),
)
SIZES = {
    "rnnprop": {"hidden_sizes": (3, 4), "input_size": 5},
    "dm": {"hidden_sizes": (3,)},
}
WEIGHTS = np.array([0.5, 0.0, -1.0, 2.0])


def largest_error(found, expected):
    """Largest difference in a leaf, relative to the leaf's largest number."""
    return max(
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )


def cast(tree, dtype):
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, tree)


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        ("rnnprop", [(jnp.float64, 5), (jnp.float32, 5)]),
        ("dm", [(jnp.float64, 1), (jnp.float64, 100), (jnp.float32, 5)]),
    ],
)
def test_blocks_give_the_meta_gradient(kind, blocks, x64):
    """Two segments, the second from states that are not zero, against plain float64.

    In blocks of a number that does not divide 13, of a single coordinate, of all.
    """
    task, optimizer = on_vector(TASK), learned_optimizer(kind, SIZES[kind])
    phi = jax.tree.map(jnp.float64, random_weights(kind, **SIZES[kind]))

    @jax.jit
    def reference(phi, episode):
        plain = learned_optimizer(kind, SIZES[kind], implementation="plain")
        return meta_gradient(phi, plain.transform, task, episode, WEIGHTS)

    @functools.partial(jax.jit, static_argnums=2)
    def in_blocks(phi, episode, block):
        transform = optimizer.transform
        return blockwise_meta_gradient(phi, transform, task, episode, WEIGHTS, block)

    episode = jax.jit(lambda key: start_episode(task, optimizer.transform(phi), key))(
        jax.random.key(1)
    )
    for _ in range(2):
        (expected_loss, expected), expected_slope = reference(phi, episode)
        for dtype, block in blocks:
            (loss, after), slope = in_blocks(*cast((phi, episode), dtype), block)
            tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
            assert loss.dtype == dtype
            assert largest_error(slope, expected_slope) < tolerance, block
            assert largest_error(loss, expected_loss) < tolerance, block
            assert largest_error(after.params, expected.params) < tolerance, block
        episode = expected


def test_a_segment_of_one_step_teaches_nothing():
    """Its loss is evaluated before its only update."""
    task, optimizer = on_vector(TASK), learned_optimizer("dm", SIZES["dm"])
    phi = random_weights("dm", **SIZES["dm"])
    episode = start_episode(task, optimizer.transform(phi), jax.random.key(1))
    (loss, after), slope = jax.jit(
        lambda phi: blockwise_meta_gradient(
            phi, optimizer.transform, task, episode, np.ones(1), 5
        )
    )(phi)
    expected = task.loss(episode.params, task.data, episode.instance, ())
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert not np.any(jax.flatten_util.ravel_pytree(slope)[0])
    assert np.all(after.params != episode.params)


BOTH_CORES = {"devices": jax.devices()[:2], "block": 4}


@pytest.mark.soak
def test_a_training_is_the_same_on_every_path():
    """float32, five updates of φ: plain, in blocks, on two devices."""

    def train(optimizer, **options):
        trainer = meta_trainer(
            TASK,
            optimizer,
            optax.sgd(1e-3),
            segment_length=4,
            **options,
        )
        start = trainer.init(jax.random.key(0))
        state, metrics = trainer.iterate(start, jax.random.key(1), 5)
        assert metrics["skipped"] == 0
        return jax.tree.map(jnp.subtract, state.phi, start.phi), metrics["train_loss"]

    # Several layers, inputs and so on are those of the test above.
    sizes = {"hidden_sizes": (3,), "input_size": 2}
    plain = learned_optimizer("rnnprop", sizes, implementation="plain")
    fast = learned_optimizer("rnnprop", sizes)
    expected, loss = train(plain._replace(coordinatewise=False))
    for options in ({}, BOTH_CORES):
        found, other = train(fast, **options)
        assert largest_error(found, expected) < 3e-5
        np.testing.assert_allclose(other, loss, rtol=1e-5)


def test_rules_that_are_not_coordinatewise_see_the_tree():
    """`coordinatewise` is False unless it is claimed."""

    def transform(phi):
        def update(updates, state, params=None):
            assert sorted(updates) == ["a", "b"]
            return jax.tree.map(lambda g: -phi * g, updates), state

        return optax.GradientTransformation(lambda params: (), update)

    task = quadratic_task(2)._replace(
        init=lambda key, instance: {"a": jnp.ones(1), "b": jnp.ones(1)},
        loss=lambda p, data, instance, batch: jnp.sum((p["a"] - 3 * p["b"]) ** 2),
    )
    optimizer = LearnedOptimizer(lambda key: jnp.float32(0.01), transform)
    trainer = meta_trainer(task, optimizer, optax.sgd(1e-3))
    state, _ = trainer.iterate(trainer.init(jax.random.key(0)), jax.random.key(1), 2)
    assert state.phi > 0.01


def test_a_state_with_two_axes_of_coordinates_is_refused():
    def init(params):
        return jnp.zeros((params.size, params.size))

    tx = optax.GradientTransformation(init, lambda g, s, p=None: (g, s))
    optimizer = LearnedOptimizer(
        lambda key: jnp.float32(0.01), lambda phi: tx, coordinatewise=True
    )
    trainer = meta_trainer(quadratic_task(2), optimizer, optax.sgd(1e-3))
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 3\)"):
        trainer.iterate(trainer.init(jax.random.key(0)), jax.random.key(1), 2)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_fused_cell(shape, x64):
    draw = np.random.default_rng(0).normal
    weights = LSTMWeights(draw(0, 0.3, (7, 12)), draw(size=12))
    state, slope = (LSTMState(*draw(size=(2, 3, *shape))) for _ in range(2))
    x = draw(0, 2, (4, *shape))

    @functools.partial(jax.jit, static_argnums=0)
    def with_derivative(cell, slope, *args):
        found, pull = jax.vjp(cell, *args)
        return found, pull(slope)

    (found, fast), (expected, plain) = (
        with_derivative(cell, slope, weights, state, x)
        for cell in (fused_cell, lstm_cell)
    )
    assert largest_error(found, expected) < 1e-14
    assert largest_error(fast, plain) < 1e-13


def test_elu(x64):
    x = jnp.array([-800.0, -3.0, -1e-9, 0.0, 1e-9, 2.0])
    np.testing.assert_allclose(elu(x), jax.nn.elu(x), rtol=1e-14)
    slope, expected = (jax.jit(jax.vmap(jax.grad(f)))(x) for f in (elu, jax.nn.elu))
    np.testing.assert_allclose(slope, expected, rtol=1e-14)
