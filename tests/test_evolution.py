"""Evolution strategies: unbiased on a parabola, robust to losses that are NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2l_jax import (
    LearnedOptimizer,
    Task,
    meta_gradient,
    meta_trainer,
    no_batches,
    start_episode,
)
from l2l_jax.estimators import (
    evolution,
    persistent_evolution,
    score_function,
    single_perturbation,
)

CENTRE = jnp.array([1.0, -2.0, 0.5])


def make_task(loss):
    return Task(
        (),
        lambda key: (),
        lambda key, instance: jnp.zeros(3),
        no_batches,
        lambda theta, data, instance, batch: loss(theta),
    )


BOWL = make_task(lambda theta: jnp.sum((theta - CENTRE) ** 2))
WEIGHTS = np.array([0.0, 0.5, 1.0])


def constant(phi):
    """Moves by φ at every step: the losses are parabolas of φ."""
    return optax.GradientTransformation(
        lambda theta: (), lambda updates, state, params=None: (phi, state)
    )


def estimates(task, number, phi, sigma, log_loss=False):
    def one(key):
        episode = start_episode(task, constant(phi), key)
        gradient = evolution(sigma).gradient
        return gradient(phi, constant, task, episode, WEIGHTS, log_loss)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), number))


def test_the_mean_is_the_meta_gradient():
    """Of a parabola at any σ: odd powers of ε but the first have no part in it."""
    phi = jnp.array([0.3, 0.1, -0.2])
    episode = start_episode(BOWL, constant(phi), jax.random.key(0))
    _, expected = meta_gradient(phi, constant, BOWL, episode, WEIGHTS)
    _, slopes = estimates(BOWL, 4000, phi, sigma=0.5)
    error = np.std(slopes, 0) / len(slopes) ** 0.5
    assert (error < 0.2 * np.abs(expected)).all()
    np.testing.assert_array_less(np.abs(np.mean(slopes, 0) - expected), 4 * error)


def test_of_the_logarithm():
    phi, sigma = jnp.array([0.3, 0.1, -0.2]), 1e-3
    (loss, _), slopes = estimates(BOWL, 2000, phi, sigma=sigma, log_loss=True)
    (plain, _), _ = estimates(BOWL, 1, phi, sigma=1e-6)
    np.testing.assert_allclose(np.mean(loss), np.log(plain[0]), rtol=1e-3)
    episode = start_episode(BOWL, constant(phi), jax.random.key(0))
    (whole, _), expected = meta_gradient(phi, constant, BOWL, episode, WEIGHTS)
    error = np.std(slopes, 0) / len(slopes) ** 0.5
    distance = np.abs(np.mean(slopes, 0) - expected / whole)
    np.testing.assert_array_less(distance, 4 * error)


def test_of_several_losses():
    """The mean of what it is of each; ε is the same."""
    phi = jnp.array([0.3, 0.1, -0.2])
    episode = start_episode(BOWL, constant(phi), jax.random.key(0))

    @jax.jit
    def estimate(phi, rows):
        gradient = evolution(0.01).gradient
        (loss, _), slope = gradient(phi, constant, BOWL, episode, rows, log_loss=True)
        return loss, slope

    rows = np.stack([WEIGHTS, [1.0, 2.0, 0.0]])
    found, *each = (estimate(phi, x) for x in (rows, *rows))
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *each)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_a_loss_that_is_no_number_is_the_worse_one():
    """To one side of φ the logarithm of the loss is not finite: away from there."""
    cliff = make_task(lambda theta: jnp.where(theta[0] > 0, jnp.nan, 1.0))
    phi = jnp.zeros(3)
    _, slopes = estimates(cliff, 50, phi, sigma=0.1, log_loss=True)
    assert np.isfinite(slopes).all()
    # 1 / (2σ) times |ε|: the difference is cut.
    assert (slopes[:, 0] > 0).all()
    assert np.abs(slopes).max() < 5 / 0.2
    hopeless = make_task(lambda theta: jnp.nan * jnp.sum(theta))
    assert not np.any(estimates(hopeless, 5, phi, sigma=0.1, log_loss=True)[1])


@pytest.mark.parametrize(
    "estimator",
    [
        evolution(0.1, pairs=4),
        persistent_evolution(0.1, pairs=4),
        score_function(0.1, particles=8),
    ],
)
def test_rollouts_that_are_lost_do_not_cost_the_update(estimator):
    """Those to one side of φ are: φ turns away, and the loss is that of the others."""

    def trained(loss, num_segments):
        trainer = meta_trainer(
            make_task(loss),
            LearnedOptimizer(lambda key: jnp.zeros(3), constant),
            optax.sgd(1e-3),
            segment_length=3,
            weights=WEIGHTS,
            log_loss=True,
            estimator=estimator,
        )
        state = trainer.init(jax.random.key(0))
        return trainer.iterate(state, jax.random.key(1), num_segments)

    state, metrics = trained(lambda theta: jnp.where(theta[0] > 0, jnp.nan, 1.0), 1)
    assert int(metrics["skipped"]) == 0
    np.testing.assert_allclose(metrics["train_loss"], np.log(1.5), rtol=1e-6)
    assert state.phi[0] < 0
    _, metrics = trained(lambda theta: jnp.nan * jnp.sum(theta), 2)
    assert int(metrics["skipped"]) == 2


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        (evolution(0.1), {}),
        (persistent_evolution(0.1, pairs=2), {"log_loss": True}),
        (score_function(0.1, particles=3), {}),
    ],
)
def test_a_training_finds_the_minimum(estimator, options):
    optimizer = LearnedOptimizer(lambda key: jnp.zeros(3), constant)
    trainer = meta_trainer(
        BOWL,
        optimizer,
        optax.adam(0.05),
        segment_length=3,
        weights=WEIGHTS,
        estimator=estimator,
        meta_batch=8,
        **options,
    )
    state = trainer.init(jax.random.key(0))
    for i in range(150):
        key = jax.random.fold_in(jax.random.key(1), i)
        state, metrics = trainer.iterate(state, key, 1)
    # Losses are those before a step: θ is φ and 2φ where they count.
    np.testing.assert_allclose(state.phi, 5 / 9 * CENTRE, atol=0.05)
    assert int(metrics["skipped"]) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights": "octaves", "segment_length": 32}, "are several losses"),
        ({"estimator": evolution(0.1), "devices": jax.devices()[:1] * 2}, "bptt"),
    ],
)
def test_what_an_estimator_cannot_is_refused(options, text):
    optimizer = LearnedOptimizer(lambda key: jnp.zeros(3), constant, True)
    with pytest.raises(ValueError, match=text):
        meta_trainer(BOWL, optimizer, optax.sgd(1.0), **options)


@pytest.mark.parametrize(
    "estimator",
    [
        evolution(0.1),
        persistent_evolution(0.1),
        single_perturbation(0.1),
        score_function(0.1),
    ],
)
def test_losses_of_a_wider_dtype_leave_the_weights_theirs(estimator, x64):
    bowl = make_task(lambda theta: jnp.sum((theta - CENTRE) ** 2).astype(jnp.float64))
    optimizer = LearnedOptimizer(lambda key: jnp.zeros(3, jnp.float32), constant)
    trainer = meta_trainer(
        bowl._replace(init=lambda key, instance: jnp.zeros(3, jnp.float32)),
        optimizer,
        optax.sgd(0.1),
        segment_length=3,
        weights=WEIGHTS,
        estimator=estimator,
    )
    state, _ = trainer.iterate(trainer.init(jax.random.key(0)), jax.random.key(1), 2)
    assert state.phi.dtype == jnp.float32
    assert np.all(state.phi != 0)
