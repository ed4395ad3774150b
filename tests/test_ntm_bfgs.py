"""NTM-BFGS: the maths of its memory, what it starts as, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2l_jax import (
    Learned,
    learned_optimizer,
    load,
    meta_trainer,
    ntm_bfgs_init,
    ntm_bfgs_transform,
    quadratic_task,
    save,
)
from l2l_jax.optimizers.quasi_newton import read_memory, secant_basis, write_memory

RNG = np.random.default_rng(0)
HESSIAN = np.diag([0.5, 1.0, 3.0, 10.0, 40.0])
SIZES = {"hidden_sizes": (4,)}


def start(kind, **sizes):
    return ntm_bfgs_init(jax.random.key(0), (4,), start=kind, **sizes)


def descend(tx, steps, theta=None):
    """θ of all steps on the quadratic, and the last state; compiled once."""
    theta = np.float32([1, -1, 2, 0.3, -0.5]) if theta is None else theta
    update = jax.jit(tx.update)
    state, found = tx.init(theta), [theta]
    for _ in range(steps):
        updates, state = update(np.float32(HESSIAN @ theta), state, theta)
        theta = np.asarray(optax.apply_updates(theta, updates))
        found.append(theta)
    assert update._cache_size() == 1
    return found, state


def bfgs(steps, step_size=0.1):
    """The textbook's, with unit steps."""
    theta = np.array([1, -1, 2, 0.3, -0.5])
    found, eye, before = [theta], np.eye(5), None
    for t in range(steps):
        g = HESSIAN @ theta
        if t == 0:
            m = eye * step_size / np.sqrt(np.mean(g**2))
        else:
            s, y = theta - before[0], g - before[1]
            if t == 1:
                m = eye * (s @ y) / (y @ y)
            rho = 1 / (s @ y)
            left = eye - rho * np.outer(s, y)
            m = left @ m @ left.T + rho * np.outer(s, s)
        before = theta, g
        theta = theta - m @ g
        found.append(theta)
    return found, m


def test_three_outer_products_are_the_update_of_bfgs():
    s, y = RNG.normal(size=(2, 5))
    y = y * np.sign(s @ y)
    root = RNG.normal(size=(5, 5))
    m = root @ root.T
    rho, eye = 1 / (s @ y), np.eye(5)
    left = eye - rho * np.outer(s, y)
    expected = left @ m @ left.T + rho * np.outer(s, s)
    s, y, memory = map(jnp.float32, (s, y, m))
    basis = secant_basis(s, y, read_memory(0.0, memory, y))
    right = basis * jnp.array([[1.0], [-1.0], [1.0]])
    np.testing.assert_allclose(write_memory(memory, basis, right), expected, 1e-4)


def test_the_memory_stays_symmetric_and_is_read_by_a_product():
    a, b = jnp.float32(RNG.normal(size=(2, 3, 5)))
    memory = write_memory(jnp.zeros((5, 5)), a, b)
    expected = sum(np.outer(x, y) for x, y in zip(a, b, strict=True))
    np.testing.assert_allclose(memory, (expected + expected.T) / 2, 1e-5, 1e-6)
    np.testing.assert_array_equal(memory, memory.T)
    found = read_memory(0.5, memory, a)
    np.testing.assert_allclose(found, a @ (memory + np.eye(5) / 2), 1e-4, 1e-5)


def test_pairs_without_curvature_are_not_written():
    s = jnp.array([1.0, 0.0])
    for y, u in ((-s, -s), (s, -s), (0 * s, 0 * s), (jnp.array([0.0, 1.0]), s)):
        assert not secant_basis(s, y, u).any()
    slope = jax.grad(lambda s: secant_basis(s, 0 * s, 0 * s).sum())(s)
    assert jnp.isfinite(slope).all()


def test_it_starts_as_bfgs():
    found, state = descend(ntm_bfgs_transform(start("bfgs")), 8)
    expected, m = bfgs(8)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    memory = state.scale * np.eye(5) + state.memory
    np.testing.assert_allclose(memory, m, rtol=1e-2, atol=1e-3)
    found, _ = descend(ntm_bfgs_transform(start("bfgs")), 40)
    assert abs(found[-1]).max() < 1e-4


def test_it_starts_as_gradient_descent_with_nothing_written():
    tx = ntm_bfgs_transform(start("gradient"))
    found, state = descend(tx, 4)
    assert not state.memory.any()
    expected = bfgs(1)[0]
    for _ in range(3):
        expected.append(expected[-1] - float(state.scale) * HESSIAN @ expected[-1])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    # Without a memory it is the same, and of any size.
    alone = ntm_bfgs_transform(start("gradient"), memory=False, max_coordinates=1)
    others, state = descend(alone, 4)
    np.testing.assert_allclose(others, found, rtol=1e-5, atol=1e-6)
    assert state.memory.shape == (0, 0)


def test_any_tree_and_dtype():
    """Leaves are only vectors at the heads; of one coordinate as of many."""
    tx = ntm_bfgs_transform(start("bfgs"))
    theta = {"w": jnp.ones((2, 2)), "b": jnp.ones((), jnp.bfloat16)}
    g = {"w": jnp.arange(4.0).reshape(2, 2), "b": jnp.ones((), jnp.bfloat16)}
    updates, state = jax.jit(tx.update)(g, tx.init(theta), theta)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(
        lambda x: (x.shape, x.dtype), theta
    )
    flat = jnp.array([1.0, 0.0, 1.0, 2.0, 3.0])  # b comes first
    length = 0.1 / jnp.sqrt(jnp.mean(flat**2))
    np.testing.assert_allclose(updates["w"].ravel(), -length * flat[1:], rtol=1e-5)
    # Of one coordinate BFGS is the secant method: exact at the third step.
    one = jax.jit(tx.update)
    x, state = jnp.ones(1), tx.init(jnp.ones(1))
    for _ in range(3):
        step, state = one(7 * x, state, x)
        x = x + step
    np.testing.assert_allclose(x, 0, atol=1e-6)


def test_where_it_is_lost_it_begins_anew():
    tx = ntm_bfgs_transform(start("bfgs"))
    found, state = descend(tx, 6)
    assert state.memory.any()
    bad = state._replace(memory=-1e3 * jnp.eye(5))
    theta = found[-1]
    g = np.float32(HESSIAN @ theta)
    updates, after = jax.jit(tx.update)(g, bad, theta)
    assert g @ np.asarray(updates) < 0
    assert jnp.abs(after.memory).max() < 10
    # A step that would go up is one along the gradient.
    phi = start("gradient")
    wrong = ntm_bfgs_transform(phi._replace(output=jax.tree.map(jnp.negative, phi[4])))
    found, state = descend(wrong, 3)
    step = -float(state.scale) * HESSIAN @ found[2]
    np.testing.assert_allclose(found[3] - found[2], step, rtol=1e-3)


def test_meta_training_learns_to_write(tmp_path):
    optimizer = learned_optimizer("ntm_bfgs", SIZES)
    assert not optimizer.coordinatewise
    trainer = meta_trainer(
        quadratic_task(3), optimizer, optax.adam(1e-2), segment_length=4, log_loss=True
    )
    state = trainer.init(jax.random.key(0))
    assert not state.phi.right.bias.any()
    for i in range(2):
        state, metrics = trainer.iterate(state, jax.random.key(i), 2)
        assert metrics["skipped"] == 0
    assert trainer.program._cache_size() == 1
    assert state.phi.right.bias.all()
    assert state.phi.right.kernel.any()

    save(tmp_path / "a.npz", Learned("ntm_bfgs", state.phi, {"step_size": 0.2}))
    learned = load(tmp_path / "a.npz")
    expected, _ = descend(ntm_bfgs_transform(state.phi, step_size=0.2), 3)
    np.testing.assert_array_equal(descend(learned.transform(), 3)[0], expected)


def test_bad_arguments_are_refused_by_name():
    phi = start("bfgs")
    with pytest.raises(ValueError, match=r"start must be one of .* got 'adam'"):
        start("adam")
    with pytest.raises(ValueError, match=r"write_heads must be 3 .* got 2"):
        start("bfgs", write_heads=2)
    with pytest.raises(TypeError, match=r"must be NTMBFGSParams, got tuple"):
        ntm_bfgs_transform(tuple(phi))
    with pytest.raises(ValueError, match=r"right must have shapes \(4, 12\)"):
        ntm_bfgs_transform(phi._replace(right=phi.read))
    with pytest.raises(ValueError, match=r"smallest layer's size 4, got 5"):
        ntm_bfgs_transform(phi, averaged_units=5)
    with pytest.raises(ValueError, match=r"memory must"):
        ntm_bfgs_transform(phi, memory="on")
    with pytest.raises(ValueError, match=r"max_coordinates must .* got 0"):
        ntm_bfgs_transform(phi, max_coordinates=0)
    tx = ntm_bfgs_transform(phi)
    with pytest.raises(ValueError, match=r"4097 x 4097 .* max_coordinates=4096"):
        jax.eval_shape(tx.init, {"a": jnp.ones(4096), "b": jnp.ones(())})
    with pytest.raises(ValueError, match=r"needs update\(…, params\)"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(TypeError, match=r"\['a'\] is int32"):
        tx.init({"a": jnp.ones(2, int)})


def test_a_donated_state_takes_no_parameters_with_it():
    """One vector of float32 is all that the rule works with: there is nothing to do."""
    tx = ntm_bfgs_transform(start("bfgs"))
    update = jax.jit(tx.update, donate_argnums=1)
    theta, g = jnp.ones(3), jnp.arange(3.0)
    state = tx.init(theta)
    for _ in range(2):
        _, state = update(g, state, theta)
    np.testing.assert_array_equal(theta + g, [1, 2, 3])
