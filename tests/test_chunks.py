"""A step in chunks is the step."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_weights

from l2l_jax import chunks, rnnprop_transform
from l2l_jax.chunks import in_chunks

pytestmark = pytest.mark.usefixtures("optimized")


def step(shared, g, state):
    """Something of every coordinate's own, with several axes in front."""
    h, m = state
    m = shared * m + g
    h = jnp.tanh(h + jnp.broadcast_to(m, h.shape))
    return jnp.sum(h, 0) - g, (h, m)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


def arrays(shape):
    rng = np.random.default_rng(0)
    g, m, *h = rng.normal(size=(6, *shape)).astype("float32")
    return np.float32(0.9), g, (np.stack(h), m)


@pytest.mark.parametrize("shape", [(17,), (64,), (67,), (5, 13), (2, 3, 11)])
def test_chunks(shape):
    args = arrays(shape)
    run = in_chunks(step, on_cpu=4, elsewhere=4)
    # Every chunk must be done once: a second time would change the state again.
    assert_close(jax.jit(run)(*args), jax.jit(step)(*args))


def objective(run, *args):
    update, (h, _) = run(*args)
    return jnp.sum(update**2) + jnp.sum(h)


def test_chunks_have_the_derivative_of_the_whole():
    args = arrays((37,))
    found, expected = (
        jax.jit(jax.grad(functools.partial(objective, run), (0, 1, 2)))(*args)
        for run in (in_chunks(step, 4, 4), step)
    )
    assert_close(found, expected)


def test_chunks_under_vmap():
    runs = [arrays((37,)), arrays((37,))]
    args = jax.tree.map(lambda *x: jnp.stack(x), *runs)
    found, expected = (
        jax.jit(jax.vmap(run))(*args) for run in (in_chunks(step, 4, 4), step)
    )
    assert_close(found, expected)


@pytest.mark.parametrize("shape", [(5, 13), (2, 3, 11)])
def test_a_small_leaf_in_a_row(shape, monkeypatch):
    monkeypatch.setattr(chunks, "is_one_part", lambda: True)  # tests have 8 devices
    monkeypatch.setattr(chunks, "IN_A_ROW_FROM", math.prod(shape))
    axes = []

    def observed(shared, g, state):
        axes.append(g.ndim)
        return step(shared, g, state)

    args = arrays(shape)
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), args)
    run = in_chunks(observed)
    slopes = (lambda *args, f=f: jax.grad(objective, 3)(f, *args) for f in (run, step))
    assert_close(jax.jit(run)(*args), jax.jit(step)(*args))
    assert_close(jax.jit(jax.vmap(run))(*two), jax.jit(jax.vmap(step))(*two))
    found, expected = (jax.jit(f)(*args) for f in slopes)
    assert_close(found, expected)
    assert set(axes) == {1}


def test_a_large_leaf():
    """The transformation itself, beyond the size where chunks begin."""
    phi = random_weights("rnnprop", (3,), 2)
    gradients = np.random.default_rng(1).normal(size=(3, 211, 157)).astype("float32")

    def train(implementation):
        tx = rnnprop_transform(phi, implementation=implementation)
        update, state = jax.jit(tx.update, donate_argnums=1), tx.init(gradients[0])
        for g in gradients:
            updates, state = update(g, state)
        return updates, optax.tree.cast(state, jnp.float32)

    assert_close(train("fused"), train("plain"))


def test_memory_of_a_large_leaf():
    """Donated state is changed in place: beside it, the update and one chunk."""
    tx = rnnprop_transform(random_weights("rnnprop", (20, 20)))
    g = jax.ShapeDtypeStruct((1_000_000,), jnp.float32)
    state = jax.eval_shape(tx.init, g)
    compiled = jax.jit(tx.update, donate_argnums=1).lower(g, state).compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    new = held - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    assert new < 1.1 * (4 + 328 + 4) * 1_000_000
