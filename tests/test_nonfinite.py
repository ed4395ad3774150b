"""Gradients that are no numbers, or too large, too small or of the wrong kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_weights

from l2l_jax import dm_transform, kernel, rnnprop_transform
from l2l_jax.optimizers import coordinatewise

PHI = {
    "rnnprop": random_weights("rnnprop", (3,), input_size=2, seed=1),
    "dm": random_weights("dm", (3,)),
}
TRANSFORMS = {"rnnprop": rnnprop_transform, "dm": dm_transform}
RULES = pytest.mark.parametrize("rule", list(PHI))
STEPS = 6
BAD = (np.nan, np.inf, -np.inf, 1e30)


def make(rule, **options):
    return TRANSFORMS[rule](PHI[rule], **options)


def gradients():
    """(STEPS, n): each bad number at each step, on a coordinate of its own; one clean.

    Returns them with what they are without, and where RNNprop and DMoptimizer skip: the
    square of 1e30 is no float32, its logarithm is.
    """
    clean = np.random.default_rng(0).normal(size=(STEPS, len(BAD) * STEPS + 1))
    clean = clean.astype(np.float32)
    found = clean.copy()
    for i, bad in enumerate(BAD):
        for step in range(STEPS):
            found[step, i * STEPS + step] = bad
    with np.errstate(over="ignore", invalid="ignore"):
        skipped = {"rnnprop": ~np.isfinite(found**2), "dm": ~np.isfinite(found)}
    return found, clean, skipped


def run(tx, steps):
    """The updates of all steps and the states after each."""
    update = jax.jit(tx.update)
    state, updates, states = tx.init(jnp.asarray(steps[0])), [], []
    for g in steps:
        u, state = update(jnp.asarray(g), state)
        updates.append(u)
        states.append(state)
    return np.stack(updates), states


def finite(tree):
    """For each coordinate, whether all its state is finite."""
    floating = (x for x in jax.tree.leaves(tree) if x.dtype != jnp.int32)
    good = [np.isfinite(np.float64(x)) for x in floating]
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in good]).all(0)


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.float64(a), np.float64(b), rtol=1e-5, atol=1e-6, equal_nan=False
        )


def by_hand(tx, steps, skipped):
    """What a guard must do: undo, after each step, what it did to the skipped."""
    update, state, updates = jax.jit(tx.update), tx.init(jnp.asarray(steps[0])), []
    for g, skip in zip(steps, skipped, strict=True):
        u, new = update(jnp.where(skip, 0, g), state)
        updates.append(np.where(skip, 0, u))
        state = jax.tree.map(  # the count, which has no coordinates, goes on
            lambda new, old, skip=skip: np.where(skip, old, new) if new.ndim else new,
            new,
            state,
        )
    return np.stack(updates), state


@RULES
def test_skip_nonfinite_leaves_the_coordinate_alone(rule):
    found, _, skipped = gradients()
    updates, states = run(make(rule, skip_nonfinite=True), found)
    assert np.isfinite(updates).all()
    for state in states:
        assert finite(state).all()
    assert (updates[skipped[rule]] == 0).all()
    assert (updates[~skipped[rule]] != 0).all()
    assert_close((updates, states[-1]), by_hand(make(rule), found, skipped[rule]))


@RULES
def test_without_it_the_rule_is_the_paper_s(rule):
    """What was bad once stays so; other coordinates know nothing of it.

    Infinity saturates DMoptimizer's LSTM, which stays finite.
    """
    found, clean, skipped = gradients()
    updates, states = run(make(rule), found)
    expected, clean_states = run(make(rule), clean)
    bad = found != clean
    hit = skipped["rnnprop"] if rule == "rnnprop" else np.isnan(found)
    np.testing.assert_array_equal(finite(states[-1]), ~hit.any(0))
    np.testing.assert_array_equal(updates[:, -1], expected[:, -1])
    before = np.cumsum(bad, 0) == 0
    np.testing.assert_array_equal(updates[before], expected[before])
    # The guard does nothing to gradients that are as they should be.
    guarded, guarded_states = run(make(rule, skip_nonfinite=True), clean)
    assert_close((guarded, guarded_states[-1]), (expected, clean_states[-1]))


@RULES
def test_large_and_small_gradients_give_finite_updates(rule):
    sizes = np.float32([1e-30, 1e30, -1e30, 1e-45, 3e38])
    updates, states = run(make(rule), np.stack([sizes] * 3 + [np.ones(5)] * 3))
    assert np.isfinite(updates).all()
    if rule == "rnnprop":
        assert np.isinf(states[-1].v[np.float32([1, 2, 4]).astype(int)]).all()


@RULES
def test_apply_if_finite_leaves_the_step_out(rule):
    """All coordinates' step, and the moments and the count with it."""
    found, clean, _ = gradients()
    found, clean = found[:, : len(BAD[:3]) * STEPS], clean[:, : len(BAD[:3]) * STEPS]
    tx = optax.apply_if_finite(make(rule), 3)
    for step in (0, 2):
        steps = clean.copy()
        steps[step] = found[step]
        updates, states = run(tx, steps)
        assert (updates[step] == 0).all()
        expected, without = run(make(rule), np.delete(clean, step, 0))
        assert_close(np.delete(updates, step, 0), expected)
        assert_close(states[-1].inner_state, without[-1])


@RULES
def test_zeros_for_a_thousand_steps_then_a_signal(rule):
    tx = make(rule)
    signal = jnp.where(jnp.arange(1003) < 1000, 0.0, 1.0)
    g = signal[:, None] * jnp.array([[1.0, -1e-3, 0.0]])

    @jax.jit
    def scan(g):
        step = lambda state, g: tx.update(g, state)[::-1]
        return jax.lax.scan(step, tx.init(g[0]), g)

    state, updates = scan(g)
    assert finite(state).all()
    assert jnp.isfinite(updates).all()
    # Silence is the same for all, the signal is not.
    assert jnp.ptp(updates[:1000], axis=1).max() == 0
    assert abs(updates[1000] - updates[999])[:2].min() > 1e-4
    assert abs(updates[1000] - updates[999])[2] < 1e-6


@RULES
def test_skipping_chunk_by_chunk_and_by_the_kernel(rule, monkeypatch):
    """The three paths of the plain guard; a leaf of float16, whose largest is 65504."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=33_001).astype(np.float16)
    g[::7], g[1::7] = np.inf, np.nan
    interpreted = functools.partial(kernel.kernel_step, interpret=True, block=2**14)
    monkeypatch.setattr(kernel, "kernel_step", interpreted)
    # It is only Triton that needs a newer JAX.
    monkeypatch.setattr(coordinatewise, "KERNEL_SINCE", (0,))
    monkeypatch.setattr(coordinatewise, "KERNEL_NOT_ON", ())

    def two_steps(implementation):
        tx = make(rule, implementation=implementation, skip_nonfinite=True)
        g_ = jnp.asarray(g)
        return run(tx, [g_, g_[::-1]])

    updates, states = two_steps("plain")
    assert np.isfinite(updates).all()
    assert finite(states[-1]).all()
    for implementation in ("fused", "kernel"):
        others, ends = two_steps(implementation)
        np.testing.assert_allclose(others, updates, rtol=0, atol=1e-4)
        assert_close(ends[-1], states[-1])


@RULES
def test_skipping_keeps_the_derivative_finite(rule):
    """The meta-gradient does not see the coordinates that were skipped."""
    found, _, skipped = gradients()
    clean = jnp.where(skipped[rule].any(0), 0, found)

    @jax.jit
    @jax.grad
    def slope(phi, g, counted):
        tx = TRANSFORMS[rule](phi, skip_nonfinite=True)
        step = lambda state, g: tx.update(g, state)[::-1]
        return jnp.sum(jax.lax.scan(step, tx.init(g[0]), g)[1] ** 2 * counted)

    good = jnp.where(skipped[rule].any(0), 0.0, 1.0)[None]
    slopes = slope(PHI[rule], jnp.asarray(found), good)
    assert_close(slopes, slope(PHI[rule], clean, good))
    slopes = slope(PHI[rule], jnp.asarray(found), jnp.ones_like(good))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(slopes))


@RULES
@pytest.mark.parametrize(
    "leaf",
    [
        jnp.ones(2, jnp.complex64),
        jnp.ones(2, jnp.int32),
        np.ones(2, bool),
        jnp.ones(2, jnp.float8_e5m2),
        jax.random.key(0),
        np.zeros(2, jax.dtypes.float0),
        jax.nn.relu,
        "relu",
    ],
    ids=lambda leaf: str(getattr(leaf, "dtype", leaf))[:12],
)
def test_leaves_of_other_kinds_are_refused_by_path(rule, leaf):
    tx = make(rule)
    tree = {"a": jnp.ones(2), "b": [None, leaf]}
    state = tx.init(tree | {"b": [None, jnp.ones(2)]})
    for call in (tx.init, lambda tree: tx.update(tree, state)):
        with pytest.raises(TypeError, match=r"leaf \['b'\]\[1\] is "):
            call(tree)


@RULES
def test_skip_nonfinite_is_true_or_false(rule):
    with pytest.raises(ValueError, match=r"skip_nonfinite .* 'yes'"):
        make(rule, skip_nonfinite="yes")


def test_p_beyond_float32_is_refused():
    """e^p would be infinite, and infinity times a gradient of 0 NaN."""
    with pytest.raises(ValueError, match=r"p must .* 87\], got 100"):
        make("dm", p=100)
    tx = make("dm", p=87)
    assert np.isfinite(run(tx, [np.float32([0, 1e-30, 1])])[0]).all()
