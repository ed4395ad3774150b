"""Global averaging cells: what they are, and what must not change them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from handset import PHI as BY_HAND
from handset import SQUASH
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import random_weights

from l2l_jax import (
    Learned,
    dm_transform,
    learned_optimizer,
    load,
    meta_trainer,
    quadratic_task,
    rnnprop_transform,
    save,
    state_sharding,
)
from l2l_jax.lstm import LSTMState, dense, lstm_cell, lstm_layers
from l2l_jax.preprocess import log_and_sign

EXCHANGES = r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
PHI = {
    "rnnprop": random_weights("rnnprop", (3, 4), input_size=2),
    "dm": random_weights("dm", (3, 4)),
}
TRANSFORMS = {"rnnprop": rnnprop_transform, "dm": dm_transform}
RULES = pytest.mark.parametrize("rule", list(PHI))
STEPS = np.float32(np.random.default_rng(0).normal(size=(3, 12)))


def make(rule, units=2, **options):
    return TRANSFORMS[rule](PHI[rule], averaged_units=units, **options)


def tree(vector):
    """Twelve coordinates as leaves of ranks 0, 1 and 2."""
    return {"a": vector[:5], "b": vector[5], "c": [vector[6:].reshape(2, 3)]}


def vector(leaves):
    """The inverse of `tree`, behind the other axes."""
    a, b, c = leaves["a"], leaves["b"], leaves["c"][0]
    return jnp.concatenate([a, b[..., None], c.reshape(*c.shape[:-2], 6)], -1)


def walk(tx, steps):
    """Updates of all steps, and the last state; compiled once."""
    update = jax.jit(tx.update)
    state, updates = tx.init(steps[0]), []
    for g in steps:
        u, state = update(g, state)
        updates.append(u)
    assert update._cache_size() == 1
    return updates, state


def assert_close(found, expected, rtol=1e-5, atol=1e-7):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), found, expected
    )


@pytest.mark.parametrize("implementation", ["plain", "fused"])
def test_the_recursion(implementation):
    """Against one coordinate's network, mapped, with the mean as a collective."""
    phi = PHI["dm"]

    def cell(weights, state, x, precision):
        c, a = lstm_cell(weights, state, x, precision)
        mean = jax.lax.pmean(a, "coordinates")
        return LSTMState(c, jnp.where(jnp.arange(len(a)) < 2, mean, a))

    def one(states, g):
        x = jnp.stack(log_and_sign(g))
        h, states = lstm_layers(phi.lstm, states, x, cell=cell)
        return 0.1 * dense(phi.output, h)[0], states

    states = tuple(LSTMState(jnp.zeros((12, h)), jnp.zeros((12, h))) for h in (3, 4))
    expected = []
    for g in STEPS:
        u, states = jax.vmap(one, axis_name="coordinates")(states, g)
        expected.append(u)
    updates, state = walk(make("dm", implementation=implementation), STEPS)
    assert_close(updates, expected)
    assert_close(state.lstm, jax.tree.map(jnp.transpose, states))


@RULES
def test_zero_units_are_the_plain_program(rule):
    def program(tx):
        g = STEPS[0]
        text = str(jax.make_jaxpr(tx.update)(g, jax.eval_shape(tx.init, g)))
        return re.sub("0x[0-9a-f]+", "", text)  # addresses of functions

    plain = program(TRANSFORMS[rule](PHI[rule]))
    assert plain == program(make(rule, 0)) != program(make(rule, 1))


def test_one_coordinate_is_the_plain_optimizer():
    steps = [{"only": g[:1]} for g in STEPS]
    assert_close(walk(make("dm", 3), steps), walk(make("dm", None), steps))


@RULES
def test_how_coordinates_are_split_into_leaves_does_not_matter(rule):
    updates, state = walk(make(rule), STEPS)
    of_tree, tree_state = walk(make(rule), [tree(g) for g in STEPS])
    assert_close([vector(u) for u in of_tree], updates)
    assert_close(vector(tree_state.lstm[1].h), state.lstm[1].h)


def test_permuted_coordinates_give_permuted_updates():
    order = np.random.default_rng(1).permutation(12)
    updates, _ = walk(make("dm"), STEPS)
    permuted, _ = walk(make("dm"), STEPS[:, order])
    assert_close(permuted, [u[order] for u in updates])


def test_with_all_units_averaged_all_coordinates_are_alike():
    updates, state = walk(make("rnnprop", 3), [tree(g) for g in STEPS])
    first = vector(state.lstm[0].h)
    assert first.shape == (3, 12)
    assert_close(first, jnp.broadcast_to(first[:, :1], first.shape), 0, 0)
    assert jnp.ptp(vector(state.lstm[0].c), axis=1).min() > 1e-4
    # Of the second layer's four units the fourth is each coordinate's own, though what
    # comes in is the same everywhere.
    assert jnp.ptp(vector(updates[-1])) < 1e-7


def test_what_coordinates_say_to_each_other():
    """φ by hand, whose one unit is averaged: everywhere the mean of what was seen."""
    g = {"a": jnp.array([1.0, 0.0, -0.5]), "b": jnp.array(0.1)}
    tx = dm_transform(BY_HAND["dm"], p=1.0, averaged_units=1)
    (updates,), _ = walk(tx, [g])
    mean = np.mean(np.clip(np.e * np.array([1.0, 0.0, -0.5, 0.1]), -1, 1))
    assert_close(updates, jax.tree.map(lambda x: jnp.full_like(x, -0.1 * mean), g))

    # m̃ of the first step is the sign.
    tx = rnnprop_transform(BY_HAND["rnnprop"], averaged_units=1, step_size=1 / SQUASH)
    (updates,), _ = walk(tx, [g])
    assert_close(updates, jax.tree.map(lambda x: jnp.full_like(x, -0.25), g), 1e-6)


def test_masked_leaves_take_no_part():
    mask = {"a": True, "b": False, "c": [True]}
    masked, state = walk(optax.masked(make("dm"), mask), [tree(g) for g in STEPS])
    alone, _ = walk(make("dm"), np.delete(STEPS, 5, axis=1))
    assert_close([np.delete(vector(u), 5) for u in masked], alone)
    assert_close([u["b"] for u in masked], list(STEPS[:, 5]))
    assert state.inner_state.lstm[0].h["b"] == optax.MaskedNode()


@RULES
def test_a_skipped_coordinate_does_not_poison_the_mean(rule):
    bad = STEPS.copy()
    bad[:, 5] = np.nan, np.inf, np.nan
    tx = make(rule, skip_nonfinite=True)
    updates, state = walk(tx, [*bad, np.full_like(bad[0], np.nan)])
    alone, _ = walk(make(rule), np.delete(STEPS, 5, axis=1))
    assert_close([np.delete(u, 5) for u in updates[:3]], alone)
    assert not any(u[5] for u in updates)
    assert not any(layer.h[:, 5].any() for layer in state.lstm)
    # Where none is good there is no mean, and nothing happens.
    before = walk(tx, bad)[1]
    assert not updates[3].any()
    assert_close(state.lstm, before.lstm)
    # Without it, one is enough.
    assert np.isnan(walk(make(rule), bad[:1])[0]).all()


def test_skipping_all_coordinates_keeps_the_derivative_finite():
    def total(phi, g):
        tx = dm_transform(phi, averaged_units=2, skip_nonfinite=True)
        return jnp.sum(tx.update(g, tx.init(g))[0])

    slope = jax.jit(jax.grad(total))(PHI["dm"], jnp.full(3, jnp.nan))
    assert not any(x.any() for x in jax.tree.leaves(slope))


def test_the_mean_is_not_rounded_to_the_state_s_dtype():
    updates, state = walk(make("dm", state_dtype="bfloat16"), STEPS[:1])
    assert state.lstm[0].h.dtype == jnp.bfloat16
    assert_close(updates, walk(make("dm"), STEPS[:1])[0])


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


@pytest.mark.parametrize(
    ("kind", "skip_nonfinite"),
    [
        (AUTO, False),
        (EXPLICIT, True),
        pytest.param(AUTO, True, marks=pytest.mark.soak),
        pytest.param(EXPLICIT, False, marks=pytest.mark.soak),
    ],
)
def test_sharded_only_sums_travel(kind, skip_nonfinite):
    tx = make("rnnprop", skip_nonfinite=skip_nonfinite)
    rng = np.random.default_rng(2)
    first, second = (
        {"w": np.float32(rng.normal(size=(8, 6))), "b": np.float32(rng.normal(size=8))}
        for _ in range(2)
    )
    mesh = jax.make_mesh((4, 2), ("x", "y"), (kind, kind))
    specs = {"w": PartitionSpec("x", "y"), "b": PartitionSpec("x")}
    at = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    there = jax.device_put(first, at)
    state = jax.jit(tx.init)(there)
    update = jax.jit(tx.update).lower(there, state).compile()
    found = update(jax.device_put(second, at), update(there, state)[1])
    updates, end = walk(tx, [first, second])
    assert_close(*jax.device_get((found, (updates[1], end))), atol=1e-6)
    text = update.as_text()
    assert set(re.findall(EXCHANGES, text)) == {"all-reduce"}
    sizes = set(re.findall(r"(\w+\[[\d,]*\])\S* all-reduce\(", text))
    assert sizes <= {"f32[]", "f32[2]", "s32[]"}
    for x, sharding in zip(
        jax.tree.leaves(found),
        jax.tree.leaves((at, state_sharding(tx, there))),
        strict=True,
    ):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)


def test_meta_training_takes_the_general_path(tmp_path):
    sizes = {"hidden_sizes": (3,)}
    assert learned_optimizer("dm", sizes, averaged_units=0).coordinatewise
    optimizer = learned_optimizer("dm", sizes, averaged_units=2)
    assert not optimizer.coordinatewise
    trainer = meta_trainer(
        quadratic_task(4), optimizer, optax.adam(1e-2), segment_length=3
    )
    state, metrics = trainer.iterate(
        trainer.init(jax.random.key(0)), jax.random.key(1), 2
    )
    assert metrics["skipped"] == 0 < metrics["update_norm"]

    save(tmp_path / "mine.npz", Learned("dm", state.phi, {"averaged_units": 2}))
    learned = load(tmp_path / "mine.npz")
    expected = walk(dm_transform(state.phi, averaged_units=2), STEPS)
    assert_close(walk(learned.transform(), STEPS), expected, 0, 0)
    with pytest.raises(ValueError, match=r"smallest layer's size 3, got 4"):
        save(tmp_path / "bad.npz", Learned("dm", state.phi, {"averaged_units": 4}))


@RULES
def test_bad_arguments_are_refused_by_name(rule):
    for bad in (-1, 4, 1.0, True, "1"):
        with pytest.raises(ValueError, match=r"averaged_units .* from 0 to .* 3, got"):
            make(rule, bad)
    with pytest.raises(ValueError, match=r"implementation .*'kernel'"):
        make(rule, implementation="kernel")
    inject = optax.inject_hyperparams
    with pytest.raises(ValueError, match=r"static_args"):
        inject(TRANSFORMS[rule])(PHI[rule], averaged_units=1).init(STEPS[0])
    tx = inject(TRANSFORMS[rule], "averaged_units")(PHI[rule], averaged_units=1)
    tx.init(STEPS[0])
