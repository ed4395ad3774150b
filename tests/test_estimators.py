"""Estimators of the meta-gradient: which are biased, how noisy, what they reduce to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2l_jax import (
    LearnedOptimizer,
    Task,
    meta_loss,
    meta_trainer,
    no_batches,
    quadratic_task,
    start_episode,
)
from l2l_jax.estimators import (
    bptt,
    evolution,
    persistent_evolution,
    score_function,
    single_perturbation,
)

SEGMENTS, LENGTH = 4, 5
WEIGHTS = np.eye(LENGTH)[-1]
CURVATURES = np.array([1.0, 0.1])
PHI = np.array([-3.0, -1.0])  # rate exp(φ_1), momentum sigmoid(φ_2)
QUADRATIC = Task(
    (),
    lambda key: (),
    lambda key, instance: jnp.ones(2),
    no_batches,
    lambda x, data, instance, batch: jnp.sum(CURVATURES * x**2) / 2,
)


def heavy_ball(phi):
    return optax.sgd(jnp.exp(phi[0]), momentum=jax.nn.sigmoid(phi[1]))


def whole_episode(phis, transform=heavy_ball):
    """Σ_k L_k with φ_k at work in segment k; what autodiff takes for the truth."""
    episode = start_episode(QUADRATIC, transform(phis[0]), jax.random.key(0))
    total = 0.0
    for phi in phis:
        loss, episode = meta_loss(phi, transform, QUADRATIC, episode, WEIGHTS, True)
        total += loss
    return total


def slopes(estimator, task, transform, phi, weights, key, segments, log_loss=False):
    """The estimate of each segment of an episode, φ being held."""
    step = functools.partial(estimator.gradient, weights=weights, log_loss=log_loss)

    def segment(state, _):
        (_, state), slope = step(phi, transform, task, state)
        return state, slope

    start = estimator.start(phi, transform, task, key)
    return jax.lax.scan(segment, start, None, segments)[1]


def many(estimator, number, phi=PHI):
    """The estimates (number, D) of the whole episode."""
    phi = jnp.asarray(phi)

    @jax.jit
    @jax.vmap
    def one(key):
        of = slopes(estimator, QUADRATIC, heavy_ball, phi, WEIGHTS, key, SEGMENTS)
        return jnp.sum(of, axis=0)

    return np.asarray(one(jax.random.split(jax.random.key(1), number)))


@pytest.fixture
def truth(x64):
    slope = jax.jit(jax.grad(lambda phi: whole_episode([phi] * SEGMENTS)))
    return slope(jnp.asarray(PHI))


SIGMA = 0.02  # little smoothing: less than 1% of the slope


@pytest.mark.parametrize(
    "estimator",
    [
        persistent_evolution(SIGMA, pairs=2),
        single_perturbation(SIGMA, pairs=2),
        score_function(SIGMA, particles=4),
    ],
    ids=["persistent", "single", "score"],
)
def test_unbiased_for_the_whole_episode(estimator, truth):
    found = many(estimator, 5_000)
    error = np.linalg.norm(found.std(0)) / len(found) ** 0.5
    size = np.linalg.norm(truth)
    assert error < 0.03 * size
    assert np.linalg.norm(found.mean(0) - truth) < 3 * error + 0.01 * size


@pytest.mark.parametrize(
    ("estimator", "number"),
    [(evolution(SIGMA), 5_000), (bptt(second_order=True), 1), (bptt(), 1)],
    ids=["evolution", "second order", "first order"],
)
def test_biased_where_earlier_segments_are_left_out(estimator, number, truth):
    found = many(estimator, number)
    error = np.linalg.norm(found.std(0)) / number**0.5
    size = np.linalg.norm(truth)
    assert error < 0.03 * size
    assert np.linalg.norm(found.mean(0) - truth) > 0.35 * size


def test_second_order_is_autodiff_within_a_segment(x64):
    """And beyond it the terms of the sum that are left out are those of φ earlier."""
    phis = [jnp.asarray(PHI)] * SEGMENTS
    parts = jax.jit(jax.jacrev(whole_episode))(phis)
    key = jax.random.key(0)
    found = slopes(
        bptt(second_order=True), QUADRATIC, heavy_ball, phis[0], WEIGHTS, key, SEGMENTS
    )
    np.testing.assert_allclose(found[-1], parts[-1], rtol=1e-10)
    whole = slopes(
        *(bptt(second_order=True), QUADRATIC, heavy_ball, phis[0]),
        *(np.tile(WEIGHTS, SEGMENTS), key, 1),
    )
    np.testing.assert_allclose(whole[0], sum(parts), rtol=1e-10)


def test_one_perturbation_is_evolution_on_one_long_segment(x64):
    phi, key = jnp.asarray(PHI), jax.random.key(3)
    run = functools.partial(slopes, task=QUADRATIC, transform=heavy_ball, phi=phi)
    cut = run(single_perturbation(0.1, 3), weights=WEIGHTS, key=key, segments=SEGMENTS)
    whole = run(
        evolution(0.1, 3), weights=np.tile(WEIGHTS, SEGMENTS), key=key, segments=1
    )
    np.testing.assert_allclose(np.sum(cut, 0), whole[0], rtol=1e-9)
    persistent = run(persistent_evolution(0.1, 3), weights=WEIGHTS, key=key, segments=1)
    np.testing.assert_allclose(persistent[0], cut[0], rtol=1e-9)


@pytest.mark.parametrize("log_loss", [False, True])
def test_by_hand(x64, log_loss):
    """Two segments, two pairs or three particles, in Python loops."""
    phi, key, sigma = jnp.asarray(PHI), jax.random.key(4), 0.3
    episode = start_episode(QUADRATIC, heavy_ball(phi), key)
    stream = jax.random.fold_in(episode.key, 0xE5)
    key_of = functools.partial(jax.random.fold_in, stream)
    draw = lambda step, n: np.asarray(jax.random.normal(key_of(step), (n, 2)))
    loss = jax.jit(meta_loss, static_argnums=(1, 2))

    def run(perturbations):
        """Losses of the segments."""
        at, found = episode, []
        for epsilon in perturbations:
            value, at = loss(phi + sigma * epsilon, heavy_ball, QUADRATIC, at, WEIGHTS)
            found.append(jnp.log(value) if log_loss else value)
        return np.array(found)

    def check(estimator, expected):
        found = slopes(
            *(estimator, QUADRATIC, heavy_ball, phi, WEIGHTS, key, 2, log_loss)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-9)

    cut = (lambda x: np.clip(x, -1, 1)) if log_loss else (lambda x: x)
    first, second = draw(0, 2), draw(LENGTH, 2)
    expected = np.zeros((2, 2))
    for a, b in zip(first, second, strict=True):
        differences = cut(run([a, b]) - run([-a, -b]))
        seen = np.stack([a, a + b])
        expected += differences[:, None] * seen / (2 * sigma) / 2
    check(persistent_evolution(sigma, 2), expected)

    three = draw(0, 3)
    losses = [run([a, a]) for a in three]
    expected = np.zeros((2, 2))
    for i, a in enumerate(three):
        others = [cut(losses[i] - losses[j]) for j in range(3) if j != i]
        expected += np.mean(others, 0)[:, None] * a / sigma / 3
    check(score_function(sigma, 3), expected)


# A loss that is linear in φ and knows no earlier segment: at its last step a segment
# has the loss a_k·φ_k.
D = 8
LINEAR = Task(
    (),
    lambda key: (),
    lambda key, instance: jnp.zeros(D),
    lambda key, data, instance, start, length: data[
        (start + jnp.arange(length)) // length
    ],
    lambda x, data, instance, batch: jnp.vdot(batch, x),
)


def jump(phi):
    """To φ, wherever the parameters are."""
    return optax.GradientTransformation(
        lambda params: (), lambda updates, state, params: (phi - params, state)
    )


def variances(estimator, *directions):
    """For each a (D, D): the variance, summed over φ, of episodes of 1, …, D segments.

    In units of |Σ_k a_k|².
    """

    @jax.jit
    def estimates(data, keys):
        run = functools.partial(
            *(slopes, estimator, LINEAR._replace(data=data), jump, jnp.zeros(D)),
            np.array([0.0, 1.0]),
            segments=D,
        )
        return jnp.cumsum(jax.vmap(lambda key: run(key=key))(keys), axis=1)

    for data in directions:
        found = estimates(data, jax.random.split(jax.random.key(0), 8_000))
        truth = np.cumsum(data, axis=0)
        # Unbiased, so that the distance from the truth is the deviation.
        squares = np.sum((np.asarray(found) - truth) ** 2, axis=2).mean(axis=0)
        yield squares / np.sum(truth**2, axis=1)


def test_variance_by_the_number_of_segments():
    """As published: for PES it grows where segments have gradients of their own.

    It falls where those are equal; one perturbation has the variance of one segment.
    """
    differing, equal = np.eye(D, dtype=np.float32), np.eye(1, D, dtype=np.float32)
    cases = differing, np.repeat(equal, D, axis=0)
    segments = np.arange(1, D + 1)
    grown = D * (segments - 1) / 2 + D + 1
    of_differing, of_equal = variances(persistent_evolution(0.1), *cases)
    np.testing.assert_allclose(of_differing, grown, rtol=0.1)
    np.testing.assert_allclose(of_equal, grown / segments, rtol=0.1)
    for found in variances(single_perturbation(0.1), *cases):
        np.testing.assert_allclose(found, D + 1, rtol=0.1)


def test_variance_by_the_number_of_particles():
    """Of P rollouts: (D + 1) / (P / 2) for pairs, (D + 1) / (P - 1) for scores."""
    (pairs,) = variances(single_perturbation(0.1, 3), np.eye(D, dtype=np.float32))
    np.testing.assert_allclose(pairs, (D + 1) / 3, rtol=0.1)
    (scores,) = variances(score_function(0.1, 6), np.eye(D, dtype=np.float32))
    np.testing.assert_allclose(scores, (D + 1) / 5, rtol=0.1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: evolution(0.0), "sigma must"),
        (lambda: persistent_evolution(-1.0), "sigma must"),
        (lambda: single_perturbation(float("nan")), "sigma must"),
        (lambda: score_function(0.0), "sigma must"),
        (lambda: evolution(0.1, 0), "pairs must"),
        (lambda: persistent_evolution(0.1, 1.5), "pairs must"),
        (lambda: score_function(0.1, 1), "particles must be at least 2, got 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_what_is_no_estimator_is_refused():
    optimizer = LearnedOptimizer(lambda key: jnp.zeros(2), heavy_ball)
    with pytest.raises(TypeError, match=r"estimator must be .* got <function"):
        meta_trainer(quadratic_task(), optimizer, optax.sgd(1.0), estimator=evolution)
