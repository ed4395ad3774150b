"""Sharded parameters: the state lies beside them, and no device asks another."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import random_weights

from l2l_jax import (
    dm_transform,
    longrun_transform,
    rnnprop_transform,
    state_sharding,
)
from l2l_jax.chunks import in_chunks
from l2l_jax.optimizers import coordinatewise

P = PartitionSpec
PHI = {
    "rnnprop": random_weights("rnnprop", (3,), input_size=2),
    "dm": random_weights("dm", (3,)),
    "longrun": random_weights("longrun"),
}
TRANSFORMS = {
    "rnnprop": rnnprop_transform,
    "dm": dm_transform,
    "longrun": longrun_transform,
}
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
LARGE, SMALL = (16, 24), (8,)  # beside chunks of 4
EXCHANGES = r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 4 coordinates, also on the part of a device."""
    chunks = functools.partial(in_chunks, on_cpu=4, elsewhere=4)
    monkeypatch.setattr(coordinatewise, "in_chunks", chunks)


def make_mesh(*types):
    return jax.make_mesh((4, 2), ("x", "y"), types)


def within(mesh):
    """Explicit axes count within `jax.set_mesh` only, from jax 0.11 on."""
    if EXPLICIT in mesh.axis_types:
        return jax.set_mesh(mesh)
    return contextlib.nullcontext()


def make(rule="rnnprop", **options):
    return TRANSFORMS[rule](PHI[rule], **options)


def how(rule, implementation):
    """Longrun has no network to choose."""
    return {} if rule == "longrun" else {"implementation": implementation}


def numbers(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(np.float32(rng.normal(size=shape)) for shape in shapes)


def gradients(seed):
    return dict(zip("wb", numbers(LARGE, SMALL, seed=seed), strict=True))


def assert_close(found, expected, rtol=1e-5, atol=1e-6):
    """Equal on the host, where it does not matter on which devices they were."""
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol),
        *jax.device_get((found, expected)),
    )


def assert_at(tree, placed):
    def check(x, sharding):
        assert x.sharding.is_equivalent_to(sharding, x.ndim), (x.sharding, sharding)

    jax.tree.map(check, tree, placed)


def exchanges(compiled):
    return set(re.findall(EXCHANGES, compiled.as_text()))


@functools.cache
def two_steps(rule, implementation="plain"):
    """Updates and state of the plain optimizer on one device."""
    tx = make(rule, **how(rule, implementation))

    def run(first, second):
        return tx.update(second, tx.update(first, tx.init(first))[1])

    return jax.jit(run)(gradients(1), gradients(2))


SOAK = pytest.mark.soak
CASES = [
    pytest.param("rnnprop", "auto", (AUTO, AUTO), P(), P(), marks=SOAK),
    pytest.param("rnnprop", "auto", (AUTO, AUTO), P("x"), P("y"), marks=SOAK),
    ("rnnprop", "auto", (AUTO, AUTO), P(None, "y"), P()),
    ("rnnprop", "auto", (AUTO, AUTO), P("x", "y"), P(("x", "y"))),
    ("rnnprop", "plain", (AUTO, AUTO), P("x", "y"), P("x")),
    ("dm", "auto", (AUTO, AUTO), P(None, ("x", "y")), P("x")),
    ("rnnprop", "auto", (EXPLICIT, EXPLICIT), P("x"), P()),
    pytest.param(
        "rnnprop", "plain", (EXPLICIT, EXPLICIT), P(None, "x"), P("y"), marks=SOAK
    ),
    ("dm", "auto", (EXPLICIT, EXPLICIT), P("x", "y"), P(("x", "y"))),
    pytest.param("dm", "auto", (EXPLICIT, AUTO), P("x", "y"), P("y"), marks=SOAK),
    ("longrun", "auto", (AUTO, AUTO), P("x", "y"), P("y")),
    ("longrun", "auto", (EXPLICIT, EXPLICIT), P("y"), P()),
]


@pytest.mark.parametrize(("rule", "implementation", "types", "w", "b"), CASES)
def test_steps_are_the_unsharded_ones(rule, implementation, types, w, b):
    tx, mesh = make(rule, **how(rule, implementation)), make_mesh(*types)
    placed = {"w": NamedSharding(mesh, w), "b": NamedSharding(mesh, b)}
    first, second = (jax.device_put(gradients(seed), placed) for seed in (1, 2))
    expected_at = state_sharding(tx, first)
    with within(mesh):
        init = jax.jit(tx.init).lower(first).compile()
        state = init(first)
        assert_at(state, expected_at)
        update = jax.jit(tx.update, donate_argnums=1).lower(first, state).compile()
        updates, state = update(second, update(first, state)[1])
    # Longrun's length is of sums over all coordinates; nothing else is exchanged.
    assert not exchanges(init)
    assert exchanges(update) == ({"all-reduce"} if rule == "longrun" else set())
    assert_close((updates, state), two_steps(rule))
    assert_at((updates, state), (placed, expected_at))


@pytest.mark.parametrize(
    "types", [(AUTO, AUTO), pytest.param((EXPLICIT, EXPLICIT), marks=SOAK)]
)
def test_without_jit(types):
    tx, mesh = make("dm"), make_mesh(*types)
    placed = {"w": NamedSharding(mesh, P("x", "y")), "b": NamedSharding(mesh, P("x"))}
    first, second = (jax.device_put(gradients(seed), placed) for seed in (1, 2))
    with within(mesh):
        updates, state = tx.update(second, tx.update(first, tx.init(first))[1])
    assert_close((updates, state), two_steps("dm"))
    assert_at((updates, state), (placed, state_sharding(tx, first)))


@pytest.mark.parametrize(
    "types", [(AUTO, AUTO), pytest.param((EXPLICIT, EXPLICIT), marks=SOAK)]
)
def test_derivatives(types, x64):
    def objective(phi, g):
        tx = dm_transform(phi)
        updates, state = tx.update(g, tx.init(g))
        return jnp.sum(jnp.sin(updates)) + jnp.sum(state.lstm[0].h)

    slope = jax.jit(jax.grad(objective, (0, 1)))
    phi, g = jax.tree.map(np.float64, (PHI["dm"], gradients(1)["w"]))
    mesh = make_mesh(*types)
    with jax.set_mesh(mesh):
        found = slope(phi, jax.device_put(g, NamedSharding(mesh, P("x", "y"))))
    assert_close(found, slope(phi, g), rtol=1e-9, atol=1e-12)


def step(shared, g, state):
    """Something of every coordinate's own, with an axis in front."""
    h, m = state
    m = shared * m + g
    h = jnp.tanh(h + jnp.broadcast_to(m, h.shape))
    return jnp.sum(h, 0) - g, (h, m)


def arrays(shape):
    g, m, h = numbers(shape, shape, (3, *shape))
    return np.float32(0.9), g, (h, m)


def twice(step):
    return jax.vmap(jax.vmap(step, (None, 0, 0)), (0, None, None))


@pytest.mark.parametrize("spec", [P(None, "x", "y"), P(("x", "y"))])
@pytest.mark.parametrize("over", [jax.vmap, twice])
def test_members_of_a_vmap(spec, over):
    """The members, or their coordinates, lie on different devices."""
    mesh = make_mesh(AUTO, AUTO)
    shared = np.linspace(0.5, 1, 8, dtype=np.float32)
    g, m, h = numbers((8, 8, 24), (8, 8, 24), (8, 3, 8, 24))
    behind = P(spec[0], None, *spec[1:])
    there = (
        shared,
        jax.device_put(g, NamedSharding(mesh, spec)),
        jax.device_put(
            (h, m), (NamedSharding(mesh, behind), NamedSharding(mesh, spec))
        ),
    )
    compiled = jax.jit(over(in_chunks(step, 4, 4))).lower(*there).compile()
    assert not exchanges(compiled)
    assert_close(compiled(*there), jax.jit(over(step))(shared, g, (h, m)))


def test_arrays_that_do_not_lie_together():
    """The result is right, though something must then be moved."""
    mesh = make_mesh(AUTO, AUTO)
    shared, g, (h, m) = arrays((16, 24))
    expected = jax.jit(step)(shared, g, (h, m))
    for specs in (P("x"), P(None, "x"), P("x", "y")), (P(), P(None, "y", "x"), P("x")):
        there = jax.device_put((g, h, m), tuple(NamedSharding(mesh, s) for s in specs))
        found = jax.jit(in_chunks(step, 4, 4))(shared, there[0], there[1:])
        assert_close(found, expected)


@pytest.mark.parametrize("axes", [{"x"}, {"x", "y"}])
def test_within_shard_map(axes):
    """There a device has its part already; of some axes or of all."""
    mesh, tx = make_mesh(AUTO, AUTO), make()
    g = gradients(0)["w"]

    def run(g):
        return tx.update(g, tx.init(g))[0]

    spec = P("x", "y") if "y" in axes else P("x")
    sharded = jax.shard_map(
        run, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=axes
    )
    there = jax.device_put(g, NamedSharding(mesh, P("x", "y")))
    assert_close(jax.jit(sharded)(there), jax.jit(run)(g))


def test_without_shardy():
    """Where the compiler's older partitioner is asked for, it does what it can."""
    mesh = make_mesh(AUTO, AUTO)
    shared, g, state = arrays((16, 24))
    there = jax.device_put(g, NamedSharding(mesh, P("x", "y")))
    run = jax.jit(in_chunks(step, 4, 4))
    before = jax.config.jax_use_shardy_partitioner
    jax.config.update("jax_use_shardy_partitioner", False)
    try:
        assert_close(run(shared, there, state), jax.jit(step)(shared, g, state))
    finally:
        jax.config.update("jax_use_shardy_partitioner", before)


def test_memory_of_a_large_leaf(monkeypatch):
    """On each device its part of the state, and a chunk's work space."""
    monkeypatch.setattr(coordinatewise, "in_chunks", in_chunks)
    tx = rnnprop_transform(random_weights("rnnprop", (20, 20)))
    there = NamedSharding(make_mesh(AUTO, AUTO), P("x", "y"))
    g = jax.ShapeDtypeStruct((1600, 1000), jnp.float32, sharding=there)
    state = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        jax.eval_shape(tx.init, g),
        state_sharding(tx, g),
    )
    compiled = jax.jit(tx.update, donate_argnums=1).lower(g, state).compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    new = held - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    assert new < 1.2 * (4 + 328 + 4) * g.size / 8
    assert not exchanges(compiled)


def wrapped(tx):
    return {
        "chain": optax.chain(optax.clip_by_global_norm(1.0), tx),
        "masked": optax.masked(tx, {"w": True, "b": False}),
        "partition": optax.partition(
            {"ours": tx, "sgd": optax.sgd(0.1)}, {"w": "ours", "b": "sgd"}
        ),
        "multi steps": optax.MultiSteps(tx, 2).gradient_transformation(),
        "adam": optax.adam(0.1),
        "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    }


@pytest.mark.parametrize("wrapper", wrapped(make()))
def test_state_sharding(wrapper):
    tx, mesh = wrapped(make())[wrapper], make_mesh(AUTO, AUTO)
    at = {"w": NamedSharding(mesh, P("x", "y")), "b": NamedSharding(mesh, P("y"))}
    theta = jax.device_put(gradients(0), at)
    placed = state_sharding(tx, theta)
    state = jax.jit(tx.init, out_shardings=placed)(theta)
    assert_at(state, placed)
    beside = {LARGE: P("x", "y"), (3, *LARGE): P(None, "x", "y")}
    beside |= {SMALL: P("y"), (3, *SMALL): P(None, "y")}
    found = set()
    for x, sharding in zip(
        jax.tree.leaves(state), jax.tree.leaves(placed), strict=True
    ):
        assert sharding.spec == beside.get(x.shape, P())
        found.add(x.shape)
    assert found & beside.keys()


def test_state_of_parameters_that_are_only_described():
    tx, there = make(), NamedSharding(make_mesh(AUTO, AUTO), P("x", "y"))
    struct = jax.ShapeDtypeStruct(LARGE, jnp.float32, sharding=there)
    state, expected_at = tx.init(struct), state_sharding(tx, struct)
    assert_at((state.m, state.lstm), (expected_at.m, expected_at.lstm))
    state = tx.init(jax.ShapeDtypeStruct(LARGE, jnp.float32))
    assert state.lstm[0].h.shape == (3, *LARGE)


@pytest.mark.parametrize(
    ("params", "error", "text"),
    [
        ({"a": [jnp.ones(2)]}, TypeError, r"\['a'\]\[0\] has SingleDevice"),
        (np.ones(2), TypeError, r"the whole tree\) has None"),
        ({}, ValueError, r"at least one array, got \{\}"),
    ],
)
def test_bad_parameters_are_refused_by_name(params, error, text):
    with pytest.raises(error, match=text):
        state_sharding(make(), params)
