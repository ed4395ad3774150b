"""Optimizees and the transforms of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_images, random_start

from l2l_jax import (
    Task,
    combine,
    convex_task,
    no_batches,
    quadratic_task,
    random_scaling,
)
from l2l_jax.tasks import (
    CNN,
    MLP,
    SineLSTM,
    classification_task,
    sine_task,
)
from l2l_jax.tasks.sine import sine_waves

KEY = jax.random.key(0)


def tree_task():
    """Sum of exponentials over a tree with a scalar and an empty branch."""

    def loss(p, data, instance, batch):
        return jnp.sum(jnp.exp(0.1 * p["a"])) + instance * p["b"][0] ** 2

    return Task(
        (),
        lambda key: jax.random.uniform(key, ()),
        lambda key, instance: {"a": jnp.linspace(-1, 1, 4), "b": [jnp.float32(2), ()]},
        no_batches,
        loss,
    )


@pytest.mark.parametrize(
    ("task", "of"),
    [
        (tree_task(), "coordinates"),
        (tree_task(), "parameters"),
        (quadratic_task(5), "coordinates"),
    ],
)
def test_random_scaling_identities(task, of):
    scaled = random_scaling(task, 2.0, of=of)
    instance, c = scaled.sample(KEY)
    theta = scaled.init(jax.random.key(1), (instance, c))
    plain = task.init(jax.random.key(1), instance)
    assert jax.tree.structure(theta) == jax.tree.structure(plain)
    args = ((), None)

    def f(x):
        return task.loss(x, args[0], instance, None)

    def f_c(x):
        return scaled.loss(x, args[0], (instance, c), None)

    np.testing.assert_allclose(f_c(theta), f(plain), rtol=1e-5)
    slopes = jax.tree.map(jnp.multiply, c, jax.grad(f)(plain))
    for a, b in zip(
        jax.tree.leaves(jax.grad(f_c)(theta)), jax.tree.leaves(slopes), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    logs = [np.log(x).ravel() for x in jax.tree.leaves(c)]
    assert all(np.all(np.abs(x) <= 2.0001) for x in logs)
    assert (len(np.unique(np.concatenate(logs))) == 1) == (of == "parameters")


def test_scaling_of_the_function_is_of_its_value_alone():
    task = quadratic_task(5)
    scaled = random_scaling(task, 2.0, of="function")
    instance, c = scaled.sample(KEY)
    theta = task.init(KEY, instance)
    np.testing.assert_array_equal(scaled.init(KEY, (instance, c)), theta)
    loss = task.loss(theta, (), instance, None)
    assert float(c) != 1
    np.testing.assert_allclose(scaled.loss(theta, (), (instance, c), None), c * loss)


def test_dropped_coordinates_are_not_seen():
    task = quadratic_task(400)
    scaled = random_scaling(task, 1.0, dropped=0.25)
    instance, c = scaled.sample(KEY)
    theta = scaled.init(KEY, (instance, c))
    assert 0.15 < float(jnp.mean(c == 0)) < 0.35
    slope = jax.grad(scaled.loss)(theta, (), (instance, c), None)
    assert jnp.all((slope == 0) == (c == 0))
    assert jnp.all(theta[c == 0] == 0)
    kept = jnp.where(c == 0, 0, task.init(KEY, instance))
    np.testing.assert_allclose(
        scaled.loss(theta, (), (instance, c), None),
        task.loss(kept, (), instance, None),
        rtol=1e-5,
    )
    _, whole = random_scaling(task, 1.0).sample(KEY)
    np.testing.assert_array_equal(c[c != 0], whole[c != 0])


def test_no_bound_is_the_identity_and_scales_are_log_uniform():
    task = quadratic_task(2000)
    _, c = random_scaling(task, 0.0).sample(KEY)
    assert jnp.all(c == 1)
    _, c = random_scaling(task, 3.0).sample(KEY)
    logs = np.sort(np.log(c))
    np.testing.assert_allclose(logs, np.linspace(-3, 3, 2000), atol=0.25)
    _, c_uniform = random_scaling(task, 3.0, distribution="uniform").sample(KEY)
    spread = np.linspace(np.exp(-3), np.exp(3), 2000)
    np.testing.assert_allclose(np.sort(c_uniform), spread, atol=0.8)
    _, other = random_scaling(task, 3.0).sample(jax.random.key(9))
    assert not np.array_equal(c, other)
    with pytest.raises(ValueError, match=r"bound .* -1"):
        random_scaling(task, -1.0)
    with pytest.raises(ValueError, match=r"of must .* 'tensors'"):
        random_scaling(task, 1.0, of="tensors")
    with pytest.raises(ValueError, match=r"distribution must .* 'normal'"):
        random_scaling(task, 1.0, distribution="normal")
    with pytest.raises(ValueError, match="dropped must be 0 where 'function'"):
        random_scaling(task, 1.0, of="function", dropped=0.5)


def test_combination_is_the_weighted_sum():
    parts = (quadratic_task(3), convex_task(4), tree_task())
    task = combine(*parts, weights=(1.0, 0.5, 2.0))
    instance = task.sample(KEY)
    params = task.init(jax.random.key(1), instance)
    batch = task.batches(jax.random.key(2), task.data, instance, jnp.int32(0), 5)
    assert len(batch) == 3
    values = [
        p.loss(x, (), i, None) for p, x, i in zip(parts, params, instance, strict=True)
    ]
    found = task.loss(params, task.data, instance, (None,) * 3)
    np.testing.assert_allclose(found, np.dot(values, [1, 0.5, 2]), rtol=1e-6)
    with pytest.raises(ValueError, match="as many as tasks, 3"):
        combine(*parts, weights=(1.0,))


def test_convex_function_and_its_clip():
    task = convex_task(6, v_range=(2, 3), x_range=(0, 0), clip=1.5)
    v = task.sample(KEY)
    x = task.init(KEY, v)
    assert jnp.all((v >= 2) & (v <= 3))
    assert jnp.all(x == 0)
    np.testing.assert_allclose(task.loss(x, (), v, None), 1.5)
    np.testing.assert_allclose(task.loss(v - 0.5, (), v, None), 0.25)


def test_base_mlp_and_its_initial_parameters():
    task = classification_task(MLP(), random_images((28, 28, 1)), batch_size=8)
    params = task.init(KEY, ())
    flat = np.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    assert flat.size == 15_910
    np.testing.assert_allclose([flat.mean(), flat.std()], [0, 0.1], atol=0.003)
    assert np.all(params["Dense_0"]["bias"] != 0)
    own = classification_task(MLP(), random_images(), batch_size=8, init_std=None)
    assert np.all(own.init(KEY, ())["Dense_0"]["bias"] == 0)
    assert task.data.images.dtype == jnp.uint8


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "elu", "tanh"])
def test_loss_is_the_mean_cross_entropy(activation):
    module = MLP(depth=2, width=5, activation=activation)
    set_ = random_images()
    task = classification_task(module, set_, batch_size=8, pixel_range=(-0.5, 0.5))
    params = random_start(task)
    indices = task.batches(KEY, task.data, (), jnp.int32(3), 2)
    x = set_.images[indices[1]] / 255 - 0.5
    logits = np.asarray(module.apply({"params": params}, jnp.float32(x)), float)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -logs[np.arange(8), set_.labels[indices[1]]].mean()
    found = task.loss(params, task.data, (), indices[1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(params) == 3
    whole = task.batches(KEY, task.data, (), jnp.int32(0), 5)
    np.testing.assert_array_equal(whole[3:], indices)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: CNN("c-f-p"), "'c-f-p'"),
        (lambda: CNN("c-p"), "'c-p'"),
        (lambda: CNN("c-p-c-p-c-f"), "channels must name 3"),
        (lambda: CNN(convolution="fast"), "'fast'"),
        (lambda: MLP(activation="swish"), "'swish'"),
        (lambda: MLP(depth=-1), "-1"),
        (
            lambda: classification_task(MLP(), random_images(), batch_size=41),
            "40, got 41",
        ),
        (
            lambda: classification_task(
                MLP(), random_images(), batch_size=40, microbatch_size=16
            ),
            "divide batch_size, 40, got 16",
        ),
        (lambda: quadratic_task(0), "num_dims"),
        (lambda: convex_task(v_range=(1, -1)), "v_range"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_sine_waves():
    seen, target = sine_waves(KEY, 20_000, 10, 0.0)
    f = np.float64(np.concatenate([seen, target[:, None]], 1))
    # f(x + 1) + f(x - 1) = 2·cos(ω)·f(x), with one ω a wave
    cosine = np.sum((f[:, 2:] + f[:, :-2]) * f[:, 1:-1], 1) / np.sum(
        2 * f[:, 1:-1] ** 2, 1
    )
    np.testing.assert_allclose(
        f[:, 2:] + f[:, :-2], 2 * cosine[:, None] * f[:, 1:-1], atol=1e-3
    )
    frequency = np.arccos(np.clip(cosine, -1, 1))
    assert 0 <= frequency.min() < 0.01
    assert np.pi / 2 - 0.01 < frequency.max() <= np.pi / 2 + 1e-3
    np.testing.assert_allclose(frequency.mean(), np.pi / 4, atol=0.02)
    np.testing.assert_allclose(np.mean(f**2), 100 / 6, rtol=0.03)  # E[A²]/2
    noisy, same = sine_waves(KEY, 20_000, 10, 0.5)
    np.testing.assert_array_equal(same, target)
    np.testing.assert_allclose(np.std(noisy - seen), 0.5, rtol=0.01)
    assert abs(np.mean(noisy - seen)) < 0.01


@pytest.mark.parametrize("layers", [1, 2])
def test_sine_lstm_is_the_recursion(layers):
    """Gates i, f, g, o without a forget bias, zero state, read-out of the last h."""
    task = sine_task(layers, hidden=3, batch_size=4)
    params = random_start(task)
    seen, target = sine_waves(jax.random.key(5), 4, 10, 0.1)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    x = np.float64(seen)[..., None]
    for layer in range(layers):
        cell = jax.tree.map(np.float64, params[f"OptimizedLSTMCell_{layer}"])
        c = h = np.zeros((4, 3))
        out = []
        for t in range(10):
            i, f, g, o = (
                x[:, t] @ cell[f"i{k}"]["kernel"]
                + h @ cell[f"h{k}"]["kernel"]
                + cell[f"h{k}"]["bias"]
                for k in "ifgo"
            )
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
        x = np.stack(out, 1)
    last = jax.tree.map(np.float64, params["Dense_0"])
    predicted = (x[:, -1] @ last["kernel"] + last["bias"])[:, 0]
    module = SineLSTM(layers, 3)
    np.testing.assert_allclose(
        module.apply({"params": params}, seen), predicted, atol=1e-5
    )
    expected = np.mean((predicted - np.float64(target)) ** 2)
    loss = task.loss(params, (), (), jax.random.key(5))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_sine_minibatches_do_not_depend_on_the_cut():
    task = sine_task()
    whole = task.batches(KEY, (), (), 0, 6)
    parts = [task.batches(KEY, (), (), start, 3) for start in (0, 3)]
    assert jnp.array_equal(
        jax.random.key_data(whole), jax.random.key_data(jnp.concatenate(parts))
    )
    assert len({tuple(k) for k in np.asarray(jax.random.key_data(whole)).tolist()}) == 6


class Network(nn.Module):
    """Dense to 10 outputs, and something that a task cannot have."""

    last: nn.Module | None = None
    flat: bool = True

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(10)(x.reshape(len(x), -1) if self.flat else x)
        return y if self.last is None else self.last(y)


DATA = random_images()


@pytest.mark.parametrize(
    ("module", "change", "error", "text"),
    [
        (MLP, {}, TypeError, "flax.linen module instance, got the class MLP"),
        (
            Network(nn.BatchNorm(use_running_average=False)),
            {},
            ValueError,
            "batch_stats",
        ),
        (Network(nn.Dropout(0.5, deterministic=False)), {}, ValueError, "dropout"),
        (Network(flat=False), {}, ValueError, r"\(batch, classes\), got \(2, 8, 8, 10"),
        (MLP(), {"images": DATA.images / 255}, ValueError, "uint8.* got float64"),
        (MLP(), {"images": DATA.images[..., 0]}, ValueError, r"got .* \(40, 8, 8\)"),
        (MLP(), {"labels": DATA.labels[:3]}, ValueError, r"40 integers.* \(3,\)"),
        (MLP(), {"labels": DATA.labels + 0.5}, ValueError, "integers.* got float64"),
        (MLP(), {"labels": DATA.labels + 5}, ValueError, "10 outputs, got 5 to 14"),
        (MLP(), {"labels": DATA.labels - 1}, ValueError, "from 0 to 9, .* got -1 to"),
        (
            CNN("c-p-c-p-f", convolution="xla"),
            {"images": DATA.images[:, :3, :3]},
            ValueError,
            r"at least 4x4 pixels .* got \(3, 3\)",
        ),
    ],
)
def test_networks_and_data_that_do_not_fit_are_refused(module, change, error, text):
    with pytest.raises(error, match=text):
        classification_task(module, DATA._replace(**change), batch_size=4)
    with pytest.raises(TypeError, match=r"tasks\[1\] must be Task, got Dataset"):
        combine(quadratic_task(2), DATA)
    with pytest.raises(TypeError, match="task must be Task, got Dataset"):
        random_scaling(DATA, 1.0)
