"""Agreement with the authors' original program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import DATA, TRANSFORMS, names, relative_error, weights

from l2l_jax import Task, meta_gradient, no_batches, segment_weights, start_episode
from l2l_jax.blockwise import blockwise_meta_gradient
from l2l_jax.preprocess import log_and_sign, relative_gradients

pytestmark = pytest.mark.usefixtures("optimized")

KINDS = pytest.mark.parametrize("kind", ["rnnprop", "dm"])
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["plain", "fused"])


def trajectory(kind, dtype, implementation):
    tx = TRANSFORMS[kind](weights(kind, dtype), implementation=implementation)
    # The coordinates spread over a tree: the rule must not notice.
    gradients = jnp.asarray(DATA["in/g7"], dtype)
    tree = {"a": gradients[:, :6].reshape(-1, 2, 3), "b": [gradients[:, 6]]}
    state = tx.init(jax.tree.map(lambda g: g[0], tree))

    def step(state, g):
        updates, state = tx.update(g, state)
        return state, updates

    state, updates = jax.lax.scan(step, state, tree)

    def flat(tree, lead):
        a = tree["a"].reshape(*tree["a"].shape[:lead], 6)
        return np.concatenate([a, tree["b"][0][..., None]], axis=-1)

    found = {"delta": flat(updates, 1)}
    for i, layer in enumerate(state.lstm):
        found |= {f"c{i}": flat(layer.c, 1).T, f"h{i}": flat(layer.h, 1).T}
    if kind == "rnnprop":
        found |= {"m": flat(state.m, 0), "v": flat(state.v, 0)}
    return found


def check_trajectory(kind, dtype, implementation, prefix, tolerance):
    for name, found in trajectory(kind, dtype, implementation).items():
        expected = DATA[f"{prefix}/traj/{kind}/g7/{name}"]
        if name in ("m", "v"):
            expected = expected[-1]
        assert found.dtype == dtype
        assert relative_error(found, expected) < tolerance, name


@KINDS
@IMPLEMENTATIONS
def test_trajectory_in_float64(kind, implementation, x64):
    check_trajectory(kind, jnp.float64, implementation, "f64", 1e-12)


@KINDS
@IMPLEMENTATIONS
def test_trajectory_in_float32(kind, implementation):
    check_trajectory(kind, jnp.float32, implementation, "f32", 1e-5)


def test_preprocessing(x64):
    g = jnp.asarray(DATA["in/g7"], jnp.float64)
    expected = DATA["f64/traj/dm/g7/pre"]
    for form in ("clip", "cases"):
        found = np.stack(log_and_sign(g, 10.0, form), -1)
        assert relative_error(found, expected) < 1e-12
    base = "f64/traj/rnnprop/g7/"
    powers = 1 - 0.95 ** np.arange(1, 31)[:, None]
    m_hat, v_hat = DATA[base + "m"] / powers, DATA[base + "v"] / powers
    found = np.stack(relative_gradients(g, jnp.asarray(m_hat), jnp.asarray(v_hat)), -1)
    assert relative_error(found, DATA[base + "pre"]) < 1e-12


def check_meta_gradient(kind, dtype, tolerance, path):
    a, x0 = (jnp.asarray(DATA[f"in/{n}"], dtype) for n in ("sq_a", "sq_x0"))
    task = Task(
        (),
        lambda key: (),
        lambda key, instance: x0,
        no_batches,
        lambda x, data, instance, batch: jnp.mean(jnp.clip((x - a) ** 2, 0, 10)),
    )
    form, word = {"rnnprop": ("last", "last"), "dm": ("avg", "mean")}[kind]
    gradient_of = {
        "blocks": functools.partial(blockwise_meta_gradient, block=4),
        "plain": meta_gradient,
    }[path]
    implementation = "plain" if path == "plain" else "fused"
    transform = functools.partial(TRANSFORMS[kind], implementation=implementation)

    phi = weights(kind, dtype)
    episode = start_episode(task, transform(phi), jax.random.key(0))
    compiled = jax.jit(
        lambda phi, episode: gradient_of(
            phi, transform, task, episode, segment_weights(word, 5)
        )
    )
    (loss, after), gradient = compiled(phi, episode)
    base = f"f64/meta/{kind}/square/T5/{form}/"
    assert relative_error(loss, DATA[base + "loss"]) < tolerance
    assert relative_error(after.params, DATA[base + "theta_last"]) < tolerance
    found = jax.tree.leaves(gradient)
    for name, slope in zip(jax.tree.leaves(names(kind)), found, strict=True):
        assert relative_error(slope, DATA[f"{base}grad/{name}"]) < tolerance, name


@KINDS
@pytest.mark.parametrize("path", ["plain", "blocks"])
def test_meta_gradient_in_float64(kind, path, x64):
    check_meta_gradient(kind, jnp.float64, 1e-12, path)


def test_meta_gradient_in_float32():
    check_meta_gradient("rnnprop", jnp.float32, 5e-5, "blocks")
