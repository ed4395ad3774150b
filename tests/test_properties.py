"""What holds for all trees, shapes, dtypes and masks: examples drawn by hypothesis."""

import contextlib
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_weights

from l2l_jax import dm_transform, rnnprop_transform
from l2l_jax.preprocess import relative_gradients

HIDDEN = 3
PHI = {
    "rnnprop": random_weights("rnnprop", (HIDDEN,), input_size=2),
    "dm": random_weights("dm", (HIDDEN,)),
}
TRANSFORMS = {"rnnprop": rnnprop_transform, "dm": dm_transform}
TX = {rule: TRANSFORMS[rule](phi) for rule, phi in PHI.items()}
UPDATE = {rule: jax.jit(tx.update) for rule, tx in TX.items()}
RULES = pytest.mark.parametrize("rule", list(TX))
SIZE, STEPS = 12, 3


@contextlib.contextmanager
def float64():
    """A fixture would be shared by all examples of a property."""
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def examples(number):
    """The same ones every time; nothing is kept on the disk."""
    return settings(max_examples=number, derandomize=True, database=None, deadline=None)


class Pair(typing.NamedTuple):
    x: typing.Any
    y: typing.Any


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
DTYPES = st.sampled_from([jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
LEAVES = st.builds(jax.ShapeDtypeStruct, SHAPES, DTYPES)
TREES = st.recursive(
    LEAVES | st.sampled_from([None, (), optax.MaskedNode()]),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(st.text(max_size=2), part, max_size=3)
        | st.builds(Pair, part, part)
    ),
    max_leaves=6,
)
OPTIONS = st.fixed_dictionaries(
    {
        "state_dtype": st.sampled_from([None, "bfloat16", "float64"]),
        "implementation": st.sampled_from(["plain", "fused", "auto"]),
        "skip_nonfinite": st.booleans(),
    }
)


@RULES
@examples(25)
@given(tree=TREES, options=OPTIONS, data=st.data())
def test_structure_is_preserved(rule, tree, options, data):
    """Of updates and state, of any tree and part of one."""
    leaves, structure = jax.tree.flatten(tree)
    mask = structure.unflatten([data.draw(st.booleans()) for _ in leaves])
    plain = TRANSFORMS[rule](PHI[rule], **options)
    with float64():
        for tx in (plain, optax.masked(plain, mask)):
            state = jax.eval_shape(tx.init, tree)
            assert jax.eval_shape(tx.update, tree, state) == (tree, state)
        state = jax.eval_shape(plain.init, tree)
    for part in state.lstm[0]:
        assert jax.tree.structure(part) == structure
        for leaf, like in zip(jax.tree.leaves(part), leaves, strict=True):
            assert leaf.shape == (HIDDEN, *like.shape)
            wide = like.dtype if like.dtype == jnp.float64 else jnp.float32
            assert leaf.dtype == (options["state_dtype"] or wide)


def gradients(*shape, low=-1e4, high=1e4):
    floats = st.floats(low, high, width=32, allow_subnormal=False)
    count = math.prod(shape)
    return st.lists(floats, min_size=count, max_size=count).map(
        lambda values: np.float32(values).reshape(shape)
    )


def run(update, tx, steps):
    """The updates of all steps, and the state after them."""
    state, updates = tx.init(steps[0]), []
    for g in steps:
        u, state = update(g, state)
        updates.append(u)
    return updates, state


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@RULES
@examples(8)
@given(g=gradients(STEPS, SIZE), order=st.permutations(range(SIZE)))
def test_permuted_coordinates_have_permuted_updates(rule, g, order):
    order = np.array(order)
    found = run(UPDATE[rule], TX[rule], g[:, order])
    expected = run(UPDATE[rule], TX[rule], g)
    assert_close(
        found, jax.tree.map(lambda x: x[..., order] if x.ndim else x, expected)
    )


CUTS = {
    "two leaves": lambda g: {"a": g[..., :5], "b": g[..., 5:]},
    "a single coordinate": lambda g: [g[..., 0], g[..., 1:]],
    "a matrix": lambda g: g.reshape(*g.shape[:-1], 3, 4),
}


@RULES
@pytest.mark.parametrize("cut", list(CUTS))
@examples(4)
@given(g=gradients(STEPS, SIZE))
def test_a_leaf_cut_in_parts_moves_as_the_whole(rule, cut, g):
    cut = CUTS[cut]
    found, state = run(UPDATE[rule], TX[rule], [cut(x) for x in g])
    expected, whole = run(UPDATE[rule], TX[rule], g)
    assert_close(found, [cut(x) for x in expected])
    assert_close(state, jax.tree.map(lambda x: cut(x) if x.ndim else x, whole))


@RULES
@examples(6)
@given(g=gradients(4, SIZE), mask=st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_mask_hides_leaves(rule, g, mask):
    """What is masked out comes back as it went in, the rest moves as without it."""
    tx, leaves = optax.masked(TX[rule], mask), list(g)
    updates, state = tx.update(leaves, tx.init(leaves))
    kept = [x for x, ours in zip(leaves, mask, strict=True) if ours]
    expected, inner = TX[rule].update(kept, TX[rule].init(kept))
    for u, x, ours in zip(updates, leaves, mask, strict=True):
        assert ours or u is x
    ours = [u for u, ours in zip(updates, mask, strict=True) if ours]
    assert_close((ours, state.inner_state), (expected, inner))


POWERS = st.integers(-20, 20).map(lambda k: 2.0**k)


@examples(20)
@given(g=gradients(STEPS, SIZE, low=1, high=2**10), signs=gradients(SIZE), s=POWERS)
def test_rnnprop_does_not_see_a_power_of_two(g, signs, s):
    """Where |g| and s·|g| are at least 1, with s a power of two: not one bit of it.

    m scales by s, v by s², the root of v by s, all without rounding. v̂, a mean of
    squares of at least 1, is at least 1 but for rounding, and so is its root r; the
    floats about r ≥ 1/4 are 2^-25 apart or more, so r + ε rounds to r for ε = 1e-8 <
    2^-26. Then g̃ = g / r and m̃ = m̂ / r are the same bits.
    """
    g = np.copysign(g, signs) * np.float32(max(1, 1 / s))
    found, expected = (
        run(UPDATE["rnnprop"], TX["rnnprop"], steps)[0]
        for steps in (g * np.float32(s), g)
    )
    np.testing.assert_array_equal(found, expected)


SMALL = st.lists(st.floats(-10, 0), min_size=SIZE, max_size=SIZE)


@examples(20)
@given(exponents=SMALL, signs=gradients(SIZE), s=POWERS)
def test_what_rnnprop_sees_of_a_power_of_two_below_1(exponents, signs, s):
    """A first step's update moves by at most α·√2·L·δ, δ = ε / (min(r, s·r) + ε).

    With r = |g|, m̂ = g and v̂ = g² both inputs are sgn(g)·f(r) with f(r) = r / (r + ε)
    = 1 - ε / (r + ε). Two numbers from 0 on differ by at most the larger one, hence
    |f(s·r) - f(r)| ≤ δ; the pair moves by √2·δ.

    L is a Lipschitz constant of the network in norms of matrices. ELU's is 1, and in
    front of it stands W. With c and h still 0, c' = σ(i)·tanh(j), h' = σ(o)·tanh(c'):
    σ has the constant 1/4 and the bound 1, tanh has 1 and 1, and K_i is the part of the
    kernel that leads from z to the gate i. The read-out is w, then tanh again::

        L = ‖w‖·(‖K_i‖ / 4 + ‖K_j‖ + ‖K_o‖ / 4)·‖W‖
    """
    alpha, eps, rounding = 0.1, 1e-8, 1e-6
    g = np.copysign(10.0 ** np.array(exponents), signs).astype(np.float32)
    scaled = g * np.float32(s)
    r = np.abs(np.float64(g))
    delta = eps / (np.minimum(r, s * r) + eps)

    seen, seen_scaled = (
        relative_gradients(x, x, np.float64(x) ** 2, eps)[0] for x in (g, scaled)
    )
    assert (np.abs(seen_scaled - seen) <= delta + rounding).all()

    phi = PHI["rnnprop"]
    i, j, _, o = np.split(np.asarray(phi.lstm[0].kernel)[: phi.input.bias.size], 4, 1)
    norm = lambda x: np.linalg.norm(np.asarray(x), 2)
    lipschitz = norm(phi.output.kernel) * norm(phi.input.kernel)
    lipschitz *= norm(i) / 4 + norm(j) + norm(o) / 4
    one, other = (run(UPDATE["rnnprop"], TX["rnnprop"], [x])[0][0] for x in (g, scaled))
    bound = alpha * (math.sqrt(2) * lipschitz * delta + rounding)
    assert (np.abs(np.float64(one) - other) <= bound).all()
