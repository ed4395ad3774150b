"""Final losses, baselines and their tuning."""

import gc
import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2l_jax import (
    Evaluation,
    Evaluator,
    Task,
    combine,
    convex_task,
    evaluator,
    quadratic_task,
    random_scaling,
    trees,
)
from l2l_jax.baselines import BASELINES, SCHEDULED, baseline, tune
from l2l_jax.trees import over_episodes

KEY = jax.random.key(0)


def noisy_task():
    """A parabola whose minimum jumps from step to step."""
    return Task(
        (),
        lambda key: jax.random.normal(key, (2,)),
        lambda key, centre: jax.random.normal(key, (2,)),
        lambda key, data, centre, start, length: jnp.sin(
            1.0 * start + jnp.arange(length)
        ),
        lambda x, data, centre, shift: jnp.sum((x - centre - shift) ** 2),
    )


def test_final_loss_is_that_of_the_frozen_parameters():
    task = noisy_task()
    result = evaluator(task, optax.sgd, 4).evaluate(0.1, KEY, 10, 3)
    for run, key in enumerate(jax.random.split(KEY, 3)):
        sample_key, init_key, _ = jax.random.split(key, 3)
        centre = np.asarray(task.sample(sample_key))
        x, curve = np.asarray(task.init(init_key, centre)), []
        for t in range(10):
            curve.append(np.sum((x - centre - np.sin(t)) ** 2))
            x = x - 0.1 * 2 * (x - centre - np.sin(t))
        final = np.mean([np.sum((x - centre - np.sin(t)) ** 2) for t in range(10)])
        np.testing.assert_allclose(result.curves[run], curve, rtol=1e-4)
        np.testing.assert_allclose(result.final[run], final, rtol=1e-4)


def test_comparisons_are_paired_and_do_not_compile_again():
    traces = []

    def transform(rate):
        traces.append(1)
        return optax.adam(rate)

    adam = evaluator(noisy_task(), transform)
    sgd = evaluator(noisy_task(), optax.sgd)
    first = adam.evaluate(0.1, KEY, 20, 2)
    np.testing.assert_array_equal(
        first.curves[:, 0], sgd.evaluate(0.1, KEY, 20, 2).curves[:, 0]
    )
    before = len(traces)
    second = adam.evaluate(np.float32(0.2), KEY, 20, 2)
    assert len(traces) == before
    assert not np.array_equal(first.final, second.final)


def test_large_episodes_run_one_after_another(monkeypatch):
    task = noisy_task()._replace(  # minibatches of its own in each run
        batches=lambda key, data, centre, start, length: (
            jax.random.normal(key) + jnp.arange(length)
        )
    )
    evaluate = lambda: evaluator(task, optax.adam).evaluate(0.1, KEY, 10, 3)
    side_by_side = evaluate()
    monkeypatch.setattr(trees, "LARGE", 8)  # bytes; an episode here has more
    one_by_one = evaluate()
    for found, expected in zip(one_by_one, side_by_side, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_data_of_a_task_do_not_outlive_it():
    def scaled():
        data = jnp.ones(1000)
        task = quadratic_task(2)._replace(data=data)
        task = task._replace(batches=lambda k, data, i, s, n: jnp.zeros((n, 0)))
        task = combine(random_scaling(task, 1.0), convex_task())
        evaluator(task, optax.sgd, 4).evaluate(0.1, KEY, 2, 1)
        return weakref.ref(data)

    seen = scaled()
    gc.collect()
    assert seen() is None


def test_what_a_large_episode_is():
    def loops(megabytes):
        x = jax.ShapeDtypeStruct((8, int(megabytes * 2**18)), jnp.float32)
        return "scan" in str(jax.make_jaxpr(over_episodes(jnp.sin))(x))

    assert loops(1)
    assert not loops(0.9)


def test_divergence_is_counted():
    result = evaluator(quadratic_task(3), optax.sgd).evaluate(1e6, KEY, 30, 4)
    summary = result.summary()
    assert summary["diverged"] == summary["not_finite"] == summary["runs"] == 4
    assert summary["mean"] is None
    grows = evaluator(quadratic_task(3), lambda rate: optax.sgd(-rate))
    summary = grows.evaluate(1e-3, KEY, 5, 4).summary()
    assert (summary["diverged"], summary["not_finite"]) == (4, 0)


def recursion(name, gradients, rate=0.1):
    """The update rules of TensorFlow 0.12, in plain NumPy."""
    x, m, v, d = 0.0, 0.0, 0.0, 0.0
    v = {"rmsprop": 1.0, "adagrad": 0.1}.get(name, 0.0)
    for t, g in enumerate(gradients, 1):
        if name == "sgd":
            x -= rate * g
        elif name == "momentum":
            m = 0.9 * m + g
            x -= rate * m
        elif name == "adagrad":
            v += g * g
            x -= rate * g / np.sqrt(v)
        elif name == "adadelta":
            v = 0.95 * v + 0.05 * g * g
            step = np.sqrt(d + 1e-8) / np.sqrt(v + 1e-8) * g
            d = 0.95 * d + 0.05 * step * step
            x -= rate * step
        elif name == "rmsprop":
            v = 0.9 * v + 0.1 * g * g
            x -= rate * g / np.sqrt(v + 1e-10)
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            size = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            x -= size * m / (np.sqrt(v) + 1e-8)
    return x


@pytest.mark.parametrize("name", list(BASELINES))
def test_baselines_have_the_defaults_of_tensorflow(name):
    gradients = [0.3, -0.1, 0.05, 2.0, 0.4]
    tx, x = BASELINES[name](0.1), jnp.float32(0)
    state = tx.init(x)
    for g in gradients:
        updates, state = tx.update(jnp.float32(g), state, x)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(x, recursion(name, gradients), rtol=2e-5)


@pytest.mark.parametrize("name", list(SCHEDULED))
def test_scheduled_baselines_come_to_rest_at_the_horizon(name):
    """With a gradient of 1 throughout, Adam's step is the rate."""
    tx, x = baseline(name, num_steps=10)(0.1), jnp.float32(0)
    state, steps = tx.init(x), []
    for _ in range(11):
        updates, state = tx.update(jnp.float32(1), state, x)
        steps.append(-float(updates))
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(11) / 10))
    np.testing.assert_allclose(steps, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: evaluator(optax.sgd, optax.sgd), TypeError, "task must be Task"),
        (
            lambda: evaluator(quadratic_task(2), optax.sgd(0.1)),
            TypeError,
            r"`lambda _: tx`, got GradientTransformation",
        ),
        (lambda: quadratic_task(0), ValueError, "num_dims must be a positive int, got"),
        (
            lambda: tune(
                "sgd", evaluator(quadratic_task(2), optax.sgd), 0, exponents=[]
            ),
            ValueError,
            "exponents must",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match=r"'adam_cosine'.*got 'lion'"):
        baseline("lion", 10)


def test_tuning_finds_the_best_rate_and_reports_the_edge():
    evaluation = evaluator(quadratic_task(2), BASELINES["sgd"])
    result = tune("sgd", evaluation, KEY, num_steps=20, num_runs=4)
    means = {row["rate"]: row for row in result.table}
    best = means[result.best_rate]
    assert best["not_finite"] == 0
    finite = [r["mean"] for r in result.table if not r["not_finite"]]
    assert best["mean"] == min(finite)
    assert not result.edge
    low = tune(
        "sgd", evaluation, KEY, num_steps=20, num_runs=4, exponents=range(16, 20)
    )
    assert low.edge
    assert low.best_rate == 2.0**-8
    with pytest.raises(ValueError, match="'lion'"):
        tune("lion", evaluation, KEY)


@pytest.mark.parametrize(
    ("exponents", "beyond", "tried", "best", "edge"),
    [
        # The best of all is 7, the grid 2 to 4 or 10 to 13.
        (range(2, 5), 0, {2, 3, 4}, 4, True),
        (range(2, 5), 1, {2, 4, 5, 6}, 6, True),
        (range(2, 5), 9, {2, 4, 5, 6, 7, 8}, 7, False),
        (range(10, 14), 9, {12, 10, 8, 6, 7, 9}, 7, False),
        (range(5, 12), 9, {5, 6, 7, 8, 9, 11}, 7, False),
        ([7], 9, {5, 6, 7, 8, 9}, 7, False),
        (range(-4, 0), 9, {-4, -3, -2}, None, True),  # all diverge
    ],
)
def test_the_grid_goes_on_where_its_end_is_the_best(
    exponents, beyond, tried, best, edge
):
    """A grid that does not know where the best is finds it; a flat end is the end."""
    seen = []

    def evaluate(rate, key, num_steps, num_runs):
        k = round(-2 * math.log2(rate))
        seen.append(k)
        final = np.full(num_runs, np.inf if k < 0 else abs(k - 7.0))
        return Evaluation(final, np.full((num_runs, 1), 9.0), None)

    result = tune(
        "sgd", Evaluator(evaluate), KEY, num_runs=2, exponents=exponents, beyond=beyond
    )
    assert set(seen) == tried
    assert len(seen) == len(tried)
    rate = result.best_rate
    assert (rate and round(-2 * math.log2(rate))) == best
    assert result.edge == edge


def test_final_parameters_are_those_of_the_last_step():
    task = quadratic_task(3)
    result = evaluator(task, optax.sgd).evaluate(0.01, jax.random.key(0), 6, 2)
    assert isinstance(result.params, np.ndarray)
    for run, key in enumerate(jax.random.split(jax.random.key(0), 2)):
        sample_key, _, _ = jax.random.split(key, 3)
        loss = task.loss(
            jnp.asarray(result.params[run]), (), task.sample(sample_key), ()
        )
        np.testing.assert_allclose(loss, result.final[run], rtol=1e-4)
