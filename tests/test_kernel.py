"""The GPU kernel, interpreted, is the plain optimizer, and Triton takes it."""

import contextlib
import functools
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from networks import random_weights, shapes_of

from l2l_jax import dm_transform, kernel, rnnprop_transform
from l2l_jax.kernel import MAX_SIZE, kernel_step, kernel_supports
from l2l_jax.lstm import LSTMState
from l2l_jax.optimizers import coordinatewise
from l2l_jax.optimizers.dm import DMState, dm_rule
from l2l_jax.optimizers.rnnprop import RNNpropState, rnnprop_rule

pytestmark = pytest.mark.usefixtures("optimized")

TRANSFORMS = {"rnnprop": rnnprop_transform, "dm": dm_transform}
# Layers' sizes, and that of the input layer for RNNprop: tiles that fit, tiles that are
# padded, several.
NETWORKS = [
    ("rnnprop", (20, 20), 20),
    ("dm", (20, 20), None),
    ("rnnprop", (8,), 8),
    ("rnnprop", (5, 17, 2), 3),
    ("dm", (3,), None),
]

BY_TRITON = pytest.mark.skipif(
    jax.__version_info__ < coordinatewise.KERNEL_SINCE,
    reason=f"Triton in jax {jax.__version__} takes no products of so few rows",
)


def kernel_update(kind, phi, g, state, form="clip", **options):
    """`update` of the transformation of one array, by the kernel."""
    if kind == "dm":
        rule, moments, scalars = dm_rule(form), (), (0.1, 10.0)
    else:
        left = 1 - 0.95 ** (state.count + 1.0)
        scalars = (0.1, 0.95, 0.95, 1e-8, left, left)
        rule, moments = rnnprop_rule(), (state.m, state.v)
    update, moments, lstm = kernel_step(
        rule.see, rule.move, phi, scalars, g, moments, state.lstm, **options
    )
    if kind == "dm":
        return update, DMState(lstm)
    return update, RNNpropState(state.count + 1, *moments, lstm)


def cuda(function, *args):
    """Its program for an NVIDIA GPU, of which none need be here."""
    there = contextlib.nullcontext()
    if jax.__version_info__ >= (0, 11):  # where Triton asks which one
        device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
        mesh = jax.sharding.AbstractMesh(
            (1,), ("x",), (AxisType.Explicit,), abstract_device=device
        )
        there = jax.sharding.use_abstract_mesh(mesh)
    with there:
        traced = jax.jit(function).trace(*args)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def gradients(*shape):
    """Of many sizes, one of them zero."""
    g = np.random.default_rng(7).normal(size=shape).astype(np.float32) ** 5
    g.flat[0] = 0
    return jnp.asarray(g)


def run(update, g, state):
    steps = functools.partial(jax.lax.scan, lambda s, x: update(x, s)[::-1])
    return jax.jit(steps)(state, g)


def assert_close(found, expected, tolerance=1e-5):
    """Largest difference in a leaf, relative to the leaf's largest number."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        a, b = np.float64(a), np.float64(b)
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


@pytest.mark.parametrize(
    ("network", "shape", "options"),
    [
        pytest.param(NETWORKS[0], (5, 7), {"block": 16}, marks=pytest.mark.soak),
        pytest.param(
            NETWORKS[1], (5, 7), {"block": 16, "form": "cases"}, marks=pytest.mark.soak
        ),
        (NETWORKS[2], (2, 64), {"precision": "high"}),
        (NETWORKS[3], (3,), {"precision": "default"}),
        (NETWORKS[4], (), {"form": "cases"}),
    ],
)
def test_steps_are_those_of_the_plain_optimizer(network, shape, options):
    kind = network[0]
    phi = random_weights(*network)
    form = {k: v for k, v in options.items() if k == "form"}
    tx = TRANSFORMS[kind](phi, implementation="plain", **form)
    update = functools.partial(kernel_update, kind, phi, interpret=True, **options)
    g, state = gradients(4, *shape), tx.init(jnp.zeros(shape))
    assert_close(run(update, g, state), run(tx.update, g, state))


def test_narrow_numbers():
    """One step, from state that is exact in bfloat16; results differ by a rounding."""
    network = ("rnnprop", (5,), 3)
    phi = random_weights(*network)
    tx = rnnprop_transform(phi, state_dtype="bfloat16", implementation="plain")
    g = gradients(9).astype(jnp.float16)
    states = jnp.bfloat16(np.random.default_rng(3).normal(size=(2, 5, 9)))
    state = tx.init(g)._replace(lstm=(LSTMState(*states),))
    update = functools.partial(kernel_update, "rnnprop", phi, interpret=True)
    found, expected = (jax.jit(f)(g, state) for f in (update, tx.update))
    assert_close(found, expected, 2**-7)


@pytest.mark.parametrize(
    "axes", [(None, 1, 0), pytest.param((0, None, None), marks=pytest.mark.soak)]
)
def test_vmap(axes):
    network = ("rnnprop", (5,), 4)
    many = axes[0] is not None
    phi = [random_weights(*network, seed=seed) for seed in range(3)]
    phi = jax.tree.map(lambda *x: jnp.stack(x), *phi) if many else phi[0]
    g = gradients(7) if many else gradients(7, 3)
    state = rnnprop_transform(random_weights(*network)).init(jnp.zeros(7))
    if not many:
        state = jax.tree.map(lambda x: jnp.stack([x, x + 1, x + 2]), state)

    def plain(phi, g, state):
        return rnnprop_transform(phi, implementation="plain").update(g, state)

    by_kernel = functools.partial(kernel_update, "rnnprop", interpret=True)
    found, expected = (
        jax.jit(jax.vmap(f, axes))(phi, g, state) for f in (by_kernel, plain)
    )
    assert_close(found, expected)


def test_derivatives_are_those_of_the_fused_path():
    phi = random_weights("rnnprop", (5,), 4)

    def loss(update, phi, g):
        state = rnnprop_transform(phi).init(g[0])
        state, updates = run(functools.partial(update, phi), g, state)
        return jnp.sum(updates**2) + sum(jnp.sum(jnp.cos(c) + h) for c, h in state.lstm)

    def fused(phi, g, state):
        return rnnprop_transform(phi, implementation="fused").update(g, state)

    by_kernel = functools.partial(kernel_update, "rnnprop", interpret=True)
    g = 0.1 + gradients(2, 2, 3)
    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, f), (0, 1)))(phi, g)
        for f in (by_kernel, fused)
    )
    assert_close(found, expected, 1e-6)


def test_state_is_donated():
    phi = random_weights("rnnprop", (3,), 4)
    update = functools.partial(kernel_update, "rnnprop", phi, interpret=True)
    state = rnnprop_transform(phi).init(jnp.zeros(5))
    jax.jit(update, donate_argnums=1)(gradients(5), state)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


@BY_TRITON
@pytest.mark.parametrize(
    ("network", "dtype", "options"),
    [
        (NETWORKS[0], "float32", {}),
        (NETWORKS[1], "bfloat16", {"precision": "default", "form": "cases"}),
        (NETWORKS[3], "float32", {"precision": "high", "block": 32, "num_warps": 2}),
        (NETWORKS[4], "float32", {}),
    ],
)
def test_triton_takes_it(network, dtype, options):
    """The lowering for CUDA, which needs no GPU; also of a vmap."""
    kind = network[0]
    phi = random_weights(*network)
    g = jnp.zeros((2, 5, 7))
    init = TRANSFORMS[kind](phi, state_dtype=dtype).init
    state = jax.eval_shape(jax.vmap(init), g)
    update = jax.vmap(functools.partial(kernel_update, kind, phi, **options))
    text = cuda(update, g, state)
    assert text.count("xla.gpu.triton") == 1
    in_place = 2 * len(network[1]) + (2 if kind == "rnnprop" else 0)
    assert text.count("#stablehlo.output_operand_alias") == in_place


def test_nothing_is_touched_past_the_end(monkeypatch):
    """On a GPU that is other arrays' memory; interpreted, it does not exist."""
    phi, g = random_weights("rnnprop", (5,), 4), jnp.zeros(7)
    state = rnnprop_transform(phi).init(g)
    masks = []

    def spy(access, ref, index, mask, *value):
        if g.size in ref.shape:
            masks.append(mask)
        return access(ref, index, mask, *value)

    for name in ("_read", "_write"):
        access = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, functools.partial(spy, access))
    jax.eval_shape(functools.partial(kernel_update, "rnnprop", phi), g, state)
    # g or the update, m and v; c and h, each a tile of four rows and one of one.
    assert len(masks) == 2 * (3 + 2 * 2)
    assert all(mask is not None for mask in masks)


@BY_TRITON
def test_by_argument():
    """The transformation takes the kernel where it can, the fused path elsewhere."""
    phi = random_weights(*NETWORKS[0])
    tx = rnnprop_transform(phi, implementation="kernel")
    for shape, kernels in (((5,), 1), ((0, 5), 0)):
        g = jax.ShapeDtypeStruct(shape, jnp.float32)
        text = cuda(tx.update, g, jax.eval_shape(tx.init, g))
        assert text.count("xla.gpu.triton") == kernels


@BY_TRITON
def test_not_for_parameters_on_a_cpu():
    tx = rnnprop_transform(random_weights(*NETWORKS[0]), implementation="kernel")
    with pytest.raises(ValueError, match=r"'plain' for parameters on a CPU, got 'kern"):
        tx.init(jax.device_put(np.ones(3), jax.devices("cpu")[0]))


@BY_TRITON
def test_chosen_on_one_gpu(monkeypatch):
    """By "auto", large leaves only, and what is compiled for a CPU goes without."""
    phi = random_weights(*NETWORKS[4])

    def make(name):
        # Anew for each program: a second trace would be the first one's.
        return dm_transform(phi, implementation=name)

    def auto(size):
        tx = make("auto")
        g = jax.ShapeDtypeStruct((size,), jnp.float32)
        return tx.update, g, jax.eval_shape(tx.init, g)

    large = coordinatewise.KERNEL_FROM
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert "triton" not in cuda(*auto(large))
    gpu = SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert cuda(*auto(large)).count("xla.gpu.triton") == 1
    update, *args = auto(large)
    assert "triton" not in jax.jit(update).lower(*args).as_text()  # for the CPU
    assert "triton" not in cuda(*auto(large - 1))
    g = gradients(large)
    found, expected = (
        jax.jit(one.update)(g, one.init(g)) for one in map(make, ("auto", "fused"))
    )
    assert_close(found, expected, 0)


@BY_TRITON
@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([{"compute_capability": "8.0"}], True),
        ([{"compute_capability": "9.0"}] * 2, False),
        ([{"compute_capability": "7.5"}], False),
        ([{"compute_capability": "gfx90a"}], False),
        ([{}], False),
    ],
)
def test_gpus_that_do(monkeypatch, devices, expected):
    found = [SimpleNamespace(**one) for one in devices]
    monkeypatch.setattr(jax, "devices", lambda: found)
    assert coordinatewise.on_one_gpu() is expected


def too_old(patch):
    patch.setattr(coordinatewise, "KERNEL_SINCE", (99, 0, 0))


def without_triton(patch):
    patch.setitem(sys.modules, coordinatewise.TRITON, None)  # as if not installed


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (too_old, r"needs jax 99\.0\.0 or newer, .*, got 0"),
        (without_triton, r"as long as it has jax\.experimental\.pallas\.triton, got 0"),
    ],
)
def test_not_with_every_jax(monkeypatch, change, expected):
    change(monkeypatch)
    gpu = SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert not coordinatewise.on_one_gpu()
    phi = random_weights(*NETWORKS[4])
    with pytest.raises(ValueError, match=expected):
        dm_transform(phi, implementation="kernel")


def test_what_is_refused(x64):
    def supports(sizes, dtype, shape=(3,)):
        phi = shapes_of("rnnprop", sizes, 4)
        g = jax.ShapeDtypeStruct(shape, dtype)
        state = jax.eval_shape(lambda g: rnnprop_transform(phi).init(g), g)
        return kernel_supports(phi, g, (state.m, state.v), state.lstm)

    assert supports((3, MAX_SIZE), jnp.float32)
    assert supports((3,), jnp.float16, ())
    assert not supports((3, MAX_SIZE + 1), jnp.float32)
    assert not supports((3,), jnp.float64)
    assert not supports((3,), jnp.float32, (0, 3))
