"""Meta-training divided among devices is that of one device, but for rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2l_jax import (
    LearnedOptimizer,
    Task,
    learned_optimizer,
    meta_trainer,
    no_batches,
)
from l2l_jax.estimators import bptt, persistent_evolution

# Compiles fast; 5 coordinates do not divide by 2 or 8, and every episode is another.
TASK = Task(
    (),
    lambda key: jnp.sin(jax.random.key_data(key).astype(float)),
    lambda key, instance: jnp.linspace(-1.0, 1.0, 5),
    no_batches,
    lambda x, data, centre, batch: (
        jnp.sum(jnp.cosh(x - centre[0])) + 3 * jnp.sum((x - centre[1]) ** 2)
    ),
)


def recurrent(phi):
    """The smallest rule with a state for each coordinate."""

    def update(g, state, params=None):
        state = jnp.tanh(phi["a"] * state + phi["b"] * g)
        return -phi["c"] * state, state

    return optax.GradientTransformation(jnp.zeros_like, update)


TINY = LearnedOptimizer(
    lambda key: {"a": jnp.float32(0.5), "b": jnp.float32(0.3), "c": jnp.float32(0.1)},
    recurrent,
    coordinatewise=True,
)
RNNPROP = learned_optimizer("rnnprop", {"hidden_sizes": (3,), "input_size": 3})


def train(optimizer, **options):
    """φ and losses of three iterations of two segments in float64."""
    trainer = meta_trainer(
        TASK, optimizer, optax.adam(1e-2), segment_length=3, **options
    )
    state = jax.tree.map(
        lambda x: x.astype(float) if x.dtype == jnp.float32 else x,
        trainer.init(jax.random.key(0)),
    )
    losses = []
    for i in range(3):
        key = jax.random.fold_in(jax.random.key(1), i)
        state, metrics = trainer.iterate(state, key, 2)
        assert metrics["skipped"] == 0
        losses.append(float(metrics["train_loss"]))
    assert trainer.program._cache_size() == 1
    return state.phi, losses


train_on_one = functools.cache(train)


def check_number(optimizer, number, **options):
    """So many devices against one."""
    expected, losses = train_on_one(optimizer, **options)
    assert len(set(losses)) == 3
    phi, others = train(optimizer, devices=jax.devices()[:number], **options)
    np.testing.assert_allclose(others, losses, rtol=1e-9)
    for a, b in zip(jax.tree.leaves(phi), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "meta_batch", "number"),
    [
        (TINY, 8, 2),  # four episodes for each
        (TINY, 8, 8),  # one
        (TINY, 8, 6),  # two groups of three devices, four episodes for each
        (TINY, 8, 3),  # no two groups: the coordinates of eight episodes
        # Four pairs of devices, an episode for each.
        pytest.param(TINY, 4, 8, marks=pytest.mark.soak),
        pytest.param(RNNPROP, 8, 2, marks=pytest.mark.soak),
        pytest.param(RNNPROP, 8, 8, marks=pytest.mark.soak),
    ],
)
def test_the_same_training_on_other_numbers_of_devices(
    optimizer, meta_batch, number, x64
):
    check_number(optimizer, number, meta_batch=meta_batch)


def test_training_on_a_device_of_choice():
    last = jax.devices()[-1]
    assert last != jax.devices()[0]
    trainer = meta_trainer(TASK, TINY, optax.sgd(1e-3), devices=[last])
    state, metrics = trainer.iterate(
        trainer.init(jax.random.key(0)), jax.random.key(1), 1
    )
    for leaf in jax.tree.leaves((state, metrics)):
        assert leaf.devices() == {last}


def test_episodes_are_divided_to_second_order_as_well(x64):
    options = {"meta_batch": 2, "estimator": bptt(second_order=True)}
    check_number(TINY, 2, **options)
    message = r"number of devices must divide meta_batch=2, got 4: .*coordinatewise"
    with pytest.raises(ValueError, match=message):
        train(TINY, devices=jax.devices()[:4], **options)
    with pytest.raises(ValueError, match="devices must be different ones"):
        train(TINY, devices=jax.devices()[:1] * 2, meta_batch=2)


def test_particles_are_divided_with_their_episodes(x64):
    check_number(TINY, 2, meta_batch=2, estimator=persistent_evolution(0.1, pairs=2))
