"""Lazy updates: what they are without laziness, when they ask, and what they need."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_weights

from l2l_jax import lazy_updates, rnnprop_transform

STEPS = np.float32(np.random.default_rng(0).normal(size=(9, 3)))


def walk(tx, steps=STEPS, values=None):
    """Updates of each step, and how often the optimizer was asked by then."""

    @jax.jit
    def run(steps, values):
        def step(state, t):
            g, value = t
            updates, state = tx.update(g, state, value=value)
            return state, (updates, state.asked if hasattr(state, "asked") else 0)

        return jax.lax.scan(step, tx.init(steps[0]), (steps, values))[1]

    values = np.ones(len(steps)) if values is None else values
    return [np.asarray(x) for x in run(steps, jnp.asarray(values, jnp.float32))]


@pytest.mark.parametrize("tolerance", [None, 0.5])
def test_asked_every_time_it_is_the_optimizer(tolerance):
    plain = rnnprop_transform(random_weights("rnnprop", (3,), 2))
    found, asked = walk(lazy_updates(plain, 1, tolerance=tolerance))
    expected, _ = walk(plain)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert asked.tolist() == list(range(1, 10))


def test_between_the_last_step_is_repeated_and_gradients_are_not_seen():
    adam = optax.adam(0.1)
    found, asked = walk(lazy_updates(adam, 3))
    expected, _ = walk(optax.with_extra_args_support(adam), STEPS[::3])
    np.testing.assert_allclose(found, np.repeat(expected, 3, axis=0), rtol=1e-6)
    assert asked.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_lazy_only_where_the_loss_stopped_to_fall():
    falling = np.exp(-0.05 * np.arange(160))
    values = np.concatenate([falling, np.full(600, falling[-1])])
    steps = np.ones((len(values), 2), np.float32)
    tx = lazy_updates(optax.sgd(0.1), 10, tolerance=0.1)
    _, asked = walk(tx, steps, values)
    assert asked[159] == 160
    assert asked[-1] - asked[-101] == 10


def test_a_loss_that_is_no_number_does_not_make_it_lazy():
    values, steps = np.full(200, np.nan), np.ones((200, 1), np.float32)
    _, asked = walk(lazy_updates(optax.sgd(0.1), 4, tolerance=0.1), steps, values)
    assert asked[-1] == 200


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match=r"every must be a positive int, got 0"):
        lazy_updates(optax.sgd(0.1), 0)
    with pytest.raises(ValueError, match=r"every must be .* got 1\.5"):
        lazy_updates(optax.sgd(0.1), 1.5)
    with pytest.raises(ValueError, match=r"tolerance must"):
        lazy_updates(optax.sgd(0.1), 2, tolerance=1.0)
    tx = lazy_updates(optax.sgd(0.1), 2, tolerance=0.1)
    with pytest.raises(ValueError, match=r"value="):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_what_is_kept_has_the_dtypes_of_the_parameters_whatever_gradients_have():
    tx = lazy_updates(optax.sgd(0.1), 2)
    g, state = jnp.full(2, 1.001), tx.init(jnp.ones(2, jnp.bfloat16))
    for expected in (-0.1001, jnp.bfloat16(-0.1001)):
        updates, state = tx.update(g, state)
        assert (updates.dtype, state.last.dtype) == (jnp.float32, jnp.bfloat16)
        np.testing.assert_allclose(updates, np.float32(expected), rtol=1e-6)


def test_a_state_can_be_donated_from_the_first_step():
    tx = lazy_updates(optax.sgd(0.1), 2)
    update = jax.jit(tx.update, donate_argnums=1)
    _, state = update(jnp.ones(3), tx.init(jnp.ones(3)))
    assert int(state.asked) == 1
