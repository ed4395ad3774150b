"""Learned outer optimizers: weights in the state, replaced without compiling again."""

import functools

import handset
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_weights

from l2l_jax import (
    LearnedOptimizer,
    load_pretrained,
    meta_trainer,
    quadratic_task,
    rnnprop_transform,
    weights_in_state,
)

# What is learned is a rate: one leaf, cheap to compile.
RATE = LearnedOptimizer(
    lambda key: jax.random.normal(key) / 10 - 6, lambda phi: optax.sgd(jnp.exp(phi))
)
PHI, OTHER = (random_weights("rnnprop", (3,), 3, seed) for seed in (0, 1))
SLOW = functools.partial(rnnprop_transform, step_size=0.05)


def learn(outer, num_iterations=2):
    """φ after each iteration, and the losses."""
    trainer = meta_trainer(quadratic_task(3), RATE, outer, segment_length=5)
    state, weights, losses = trainer.init(jax.random.key(0)), [], []
    for key in jax.random.split(jax.random.key(1), num_iterations):
        state, metrics = trainer.iterate(state, key, 4)
        weights.append(float(state.phi))
        losses.append(float(metrics["train_loss"]))
    return weights, losses


def test_an_outer_optimizer_that_is_adam_by_weights_trains_as_adam():
    found, _ = learn(handset.adam("rnnprop", 0.1))
    expected, _ = learn(optax.adam(0.1, b1=0.95, b2=0.95))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_shipped_optimizer_trains_a_fresh_one():
    # With 0.1 the learned rate passes the edge of stability in these iterations.
    outer = load_pretrained("rnnprop").transform(step_size=0.05)
    weights, losses = learn(outer, 20)
    assert weights[-1] > weights[0] + 0.5  # the first rate is far too low
    assert losses[-1] < 0.7 * losses[0]


def taught(state, phi):
    return state._replace(outer_state=state.outer_state._replace(phi=phi))


def test_weights_in_the_state_are_as_good_as_constants_and_do_not_compile_again():
    task, key = quadratic_task(3), jax.random.key(1)
    trainer = meta_trainer(task, RATE, weights_in_state(SLOW, PHI), segment_length=5)
    start, _ = trainer.iterate(trainer.init(jax.random.key(0)), key, 2)
    state, _ = trainer.iterate(taught(start, OTHER), key, 2)
    assert trainer.program._cache_size() == 1
    reference = meta_trainer(task, RATE, SLOW(OTHER), segment_length=5)
    inner = start.outer_state.inner
    expected, _ = reference.iterate(start._replace(outer_state=inner), key, 2)
    np.testing.assert_array_equal(state.phi, expected.phi)
    same, _ = trainer.iterate(start, key, 2)
    assert same.phi != state.phi
    for a, b in zip(*map(jax.tree.leaves, (state.outer_state.phi, OTHER)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_extra_arguments_reach_the_optimizer():
    def by_value(phi):
        def update(updates, state, params=None, *, value, **extra_args):
            return jax.tree.map(lambda g: -phi * value * g, updates), state

        return optax.GradientTransformationExtraArgs(lambda _: (), update)

    tx = weights_in_state(by_value, 2.0)
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=3.0)
    np.testing.assert_array_equal(updates, [-6.0, -6.0])


def test_a_donated_state_takes_no_weights_with_it():
    phi = {"rate": jnp.float32(0.1)}
    tx = weights_in_state(lambda phi: optax.sgd(phi["rate"]), phi)
    update = jax.jit(tx.update, donate_argnums=1)
    for _ in range(2):
        update(jnp.ones(3), tx.init(jnp.ones(3)))
    assert float(phi["rate"]) == pytest.approx(0.1)
