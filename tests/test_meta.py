"""Meta-training: scans, gradients, truncation, and what is never applied."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_weights

from l2l_jax import (
    Task,
    combine,
    convex_task,
    evaluator,
    learned_optimizer,
    meta_gradient,
    meta_trainer,
    no_batches,
    quadratic_task,
    segment_weights,
    start_episode,
    trees,
    unroll,
)
from l2l_jax.meta import MetaState, meta_step

pytestmark = pytest.mark.usefixtures("optimized")

SMALL = {"hidden_sizes": (3,), "input_size": 3}
OPTIMIZER = learned_optimizer("rnnprop", SMALL)
PHI = random_weights("rnnprop", **SMALL)


# A smooth bowl that is not a parabola, so that its gradient's slope varies.
CENTRE = np.array([0.3, -0.2, 0.6])
BOWL = Task(
    (),
    lambda key: (),
    lambda key, instance: jnp.linspace(-1, 1, 3),
    no_batches,
    lambda x, data, instance, batch: jnp.sum(jnp.cosh(x - CENTRE)),
)
WEIGHTS = np.array([0.5, 0.0, 1.0, 2.0])


def test_scan_equals_a_python_loop():
    task, tx = quadratic_task(4), OPTIMIZER.transform(PHI)
    episode = start_episode(task, tx, jax.random.key(1))
    after, losses = jax.jit(lambda e: unroll(task, tx, e, 5))(episode)
    params, state = episode.params, episode.opt_state
    slope, update = jax.jit(jax.value_and_grad(task.loss)), jax.jit(tx.update)
    for t in range(5):
        loss, g = slope(params, (), episode.instance, None)
        updates, state = update(g, state)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(losses[t], loss, rtol=1e-5)
    np.testing.assert_allclose(after.params, params, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 5


@pytest.fixture
def bowl(x64):
    """φ in float64 and an episode on the bowl."""
    phi = jax.tree.map(jnp.float64, PHI)
    return phi, start_episode(BOWL, OPTIMIZER.transform(phi), jax.random.key(1))


@functools.partial(jax.jit, static_argnums=2)
def slope_of(phi, episode, second_order=False):
    transform = OPTIMIZER.transform
    return meta_gradient(phi, transform, BOWL, episode, WEIGHTS, second_order)[1]


@jax.jit
def replay(phi, episode, gradients):
    """Meta-loss with the gradients given (constant) or, if None, the true ones."""
    tx, params, state, total = (
        OPTIMIZER.transform(phi),
        episode.params,
        episode.opt_state,
        0.0,
    )
    seen = []
    for t, w in enumerate(WEIGHTS):
        loss, g = jax.value_and_grad(BOWL.loss)(params, (), (), None)
        g = g if gradients is None else gradients[t]
        seen.append(g)
        total += w * loss
        updates, state = tx.update(g, state)
        params = params + updates
    return total, seen


@pytest.mark.parametrize("second_order", [False, True])
def test_meta_gradient_equals_finite_differences(second_order, bowl):
    phi, episode = bowl
    fixed = None if second_order else replay(phi, episode, None)[1]
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), phi)
    step = 1e-5

    def moved(sign):
        there = jax.tree.map(lambda x, d: x + sign * step * d, phi, direction)
        return replay(there, episode, fixed)[0]

    expected = (moved(1) - moved(-1)) / (2 * step)
    found = optax.tree.vdot(slope_of(phi, episode, second_order), direction)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_first_order_equals_differentiation_by_jax(bowl):
    phi, episode = bowl

    @jax.jit
    @jax.grad
    def reference(phi):
        tx = OPTIMIZER.transform(phi)
        params, state, total = episode.params, episode.opt_state, 0.0
        for w in WEIGHTS:
            loss, g = jax.value_and_grad(BOWL.loss)(params, (), (), None)
            updates, state = tx.update(jax.lax.stop_gradient(g), state)
            params, total = params + updates, total + w * loss
        return total

    first = jax.tree.leaves(slope_of(phi, episode))
    for a, b in zip(first, jax.tree.leaves(reference(phi)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)
    second = jax.tree.leaves(slope_of(phi, episode, True))
    assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(first, second, strict=True))


def test_first_order_differentiates_the_optimizee_once():
    @jax.custom_vjp
    def square(x):
        return jnp.sum(x**2)

    def forward(x):
        # A loop of unknown length: JAX cannot go back through it.
        loop = jax.lax.while_loop(lambda y: jnp.sum(y) < 0, lambda y: -y, x)
        return jnp.sum(loop**2), 2 * x

    square.defvjp(forward, lambda slope, u: (u * slope,))

    def slope(f):
        task = BOWL._replace(loss=lambda x, *_: f(x))
        episode = start_episode(task, optax.sgd(0.1), jax.random.key(0))
        rate = jnp.float32(0.1)
        return meta_gradient(rate, optax.sgd, task, episode, np.ones(3))[1]

    expected = slope(lambda x: jnp.sum(x**2))
    np.testing.assert_allclose(slope(square), expected, rtol=1e-6)
    assert expected < 0


def test_nothing_flows_across_a_truncation(bowl):
    phi, episode = bowl

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def whole(phi):
        middle, _ = unroll(BOWL, OPTIMIZER.transform(phi), episode, 4)
        _, losses = unroll(BOWL, OPTIMIZER.transform(phi), middle, 4)
        return losses @ WEIGHTS, middle

    uncut, middle = whole(phi)
    cut = slope_of(phi, middle)
    assert np.abs(cut.output.bias - uncut.output.bias).max() > 1e-6
    # The trainer's second update is that of the cut gradient.
    trainer = meta_trainer(
        BOWL, OPTIMIZER, optax.sgd(0.0), segment_length=4, weights=WEIGHTS
    )
    state = MetaState(phi, optax.sgd(0.0).init(phi), jnp.zeros([], jnp.int32))
    _, metrics = trainer.iterate(state, jax.random.key(1), 2)
    first = optax.tree.norm(slope_of(phi, episode))
    np.testing.assert_allclose(
        metrics["gradient_norm"], (first + optax.tree.norm(cut)) / 2, rtol=1e-6
    )


@pytest.mark.parametrize("large", [trees.LARGE, 0])
def test_meta_batch_is_the_mean_of_its_episodes(large, monkeypatch):
    monkeypatch.setattr(trees, "LARGE", large)  # 0: one after another
    outer, key = optax.sgd(1.0), jax.random.key(5)
    start = MetaState(PHI, outer.init(PHI), jnp.zeros([], jnp.int32))
    # Every episode has a bowl of its own.
    task = BOWL._replace(
        sample=lambda key: jnp.sin(jax.random.key_data(key)[:1].astype(jnp.float32)),
        loss=lambda x, data, shift, batch: jnp.sum(jnp.cosh(x - shift)),
    )
    one, two = (
        meta_trainer(task, OPTIMIZER, outer, segment_length=3, meta_batch=size)
        for size in (1, 2)
    )

    def moved(trainer, key):
        new, _ = trainer.iterate(start, key, 1)
        return jax.tree.map(jnp.subtract, new.phi, PHI)

    both = moved(two, key)
    mean = jax.tree.map(
        lambda a, b: (a + b) / 2, *(moved(one, k) for k in jax.random.split(key, 2))
    )
    for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("num_devices", "meta_batch"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.soak)]
)
def test_other_horizons_data_weights_and_rates_do_not_compile_again(
    num_devices, meta_batch
):
    traces = []

    def loss(x, data, instance, batch):
        traces.append(1)
        return jnp.sum((x - data) ** 2)

    task = Task(jnp.ones(2), lambda k: (), lambda k, i: jnp.zeros(2), no_batches, loss)
    outer = optax.inject_hyperparams(optax.adam)(1e-3)
    devices = jax.devices()[:num_devices]
    options = {"meta_batch": meta_batch, "devices": devices}
    trainer = meta_trainer(task, OPTIMIZER, outer, segment_length=2, **options)
    state = trainer.init(jax.random.key(0))
    state, _ = trainer.iterate(state, jax.random.key(1), 2)
    before = len(traces)
    state.outer_state.hyperparams["learning_rate"] = jnp.float32(1e-2)
    state = state._replace(phi=jax.tree.map(lambda x: x / 2, state.phi))
    state, metrics = trainer.iterate(state, jax.random.key(2), 7)
    if num_devices == 1:
        # Put where the trainer puts them, or they would compile for themselves.
        others = 5 * jnp.ones(2), state, jax.random.key(3), jnp.int32(1)
        trainer.program(*jax.device_put(others, devices[0]))
    assert len(traces) == before
    assert trainer.program._cache_size() == 1
    assert int(state.step) == 2
    assert int(metrics["skipped"]) == 0


def test_learning_lowers_the_loss():
    trainer = meta_trainer(
        combine(convex_task(5), quadratic_task(2)), OPTIMIZER, optax.adam(1e-2)
    )
    state, losses = trainer.init(jax.random.key(0)), []
    for key in jax.random.split(jax.random.key(1), 60):
        state, metrics = trainer.iterate(state, key, 3)
        losses.append(float(metrics["train_loss"]))
    assert np.mean(losses[-15:]) < 0.5 * np.mean(losses[:15])


def test_non_finite_gradients_are_counted_and_never_applied():
    def loss(x, bad, instance, step):
        return jnp.sum(x**2) * jnp.where(step == 3, bad, 1.0)

    task = Task(
        jnp.float32(1),
        lambda key: (),
        lambda key, instance: jnp.ones(2),
        lambda key, data, instance, start, length: start + jnp.arange(length),
        loss,
    )
    trainer = meta_trainer(task, OPTIMIZER, optax.adam(1e-2), segment_length=2)
    state, key = trainer.init(jax.random.key(0)), jax.random.key(1)
    one, _ = trainer.iterate(state, key, 1)
    for bad in (np.nan, np.inf):
        # Steps 2 and 3, and all that comes after the broken update, give nothing.
        three, metrics = trainer.program(jnp.float32(bad), state, key, jnp.int32(3))
        assert int(metrics["skipped"]) == 2
        assert np.isfinite(metrics["train_loss"])
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(three), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_single_step_takes_any_outer_optimizer():
    phi = {"w": jnp.ones(2)}
    outer = optax.chain(optax.clip(0.1), optax.sgd(1.0))
    state = MetaState(phi, outer.init(phi), jnp.zeros([], jnp.int32))
    new, metrics = meta_step(outer, state, jnp.float32(1), {"w": jnp.array([9.0, 0.0])})
    np.testing.assert_allclose(new.phi["w"], [0.9, 1.0])
    assert not metrics.skipped


@pytest.mark.parametrize(
    "weights", ["first", "octaves", [1.0, 2.0], [0.0, 0.0, 0.0], [1.0, np.nan, 0.0]]
)
def test_bad_loss_weights(weights):
    with pytest.raises(ValueError, match="weights must be"):
        segment_weights(weights, 3)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("init", lambda key, instance: jnp.ones(2, int), "floating|float16"),
        ("batches", lambda *args: jnp.zeros(5), "leading axis"),
        ("loss", lambda x, data, instance, batch: x, "scalar"),
    ],
)
def test_a_task_that_breaks_its_contract_is_refused(field, value, text):
    task = quadratic_task(3)._replace(**{field: value})
    with pytest.raises(TypeError, match=text):
        meta_trainer(task, OPTIMIZER, optax.sgd(1.0))
    with pytest.raises(TypeError, match=text):
        evaluator(task, optax.sgd)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"task": OPTIMIZER}, "task must be Task, got LearnedOptimizer"),
        ({"optimizer": optax.adam}, "optimizer must be a LearnedOptimizer.* function"),
        ({"outer": optax.adam}, "outer must be an optax.Grad.* got function"),
        ({"outer": 0.1}, "outer must be .* got float"),
        ({"devices": 2}, r"devices must be a list such as .* got 2"),
    ],
)
def test_arguments_of_other_types_are_refused_by_name(change, text):
    right = {"task": quadratic_task(3), "optimizer": OPTIMIZER, "outer": optax.sgd(1.0)}
    with pytest.raises(TypeError, match=text):
        meta_trainer(**(right | change))


@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_numbers_of_segments_that_are_none(number):
    trainer = meta_trainer(quadratic_task(3), OPTIMIZER, optax.sgd(1.0))
    with pytest.raises(ValueError, match=rf"num_segments must .* got {number}$"):
        trainer.iterate(None, jax.random.key(0), number)


def test_equal_keys_give_equal_episodes():
    task = quadratic_task(3)
    starts = [
        functools.partial(start_episode, task, tx)(jax.random.key(7))
        for tx in (optax.sgd(0.1), optax.adam(0.1))
    ]
    np.testing.assert_array_equal(starts[0].params, starts[1].params)
