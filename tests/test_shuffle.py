"""Random access into shuffled epochs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from l2l_jax.tasks.shuffle import minibatch_indices

pytestmark = pytest.mark.usefixtures("optimized")

KEY = jax.random.key(0)


def epochs(num_examples, count, key=KEY):
    """The permutations of the first `count` epochs, one a row."""
    return np.asarray(minibatch_indices(key, num_examples, num_examples, 0, count))


def assert_plausible(observed, expected, variance, freedom):
    """Chi-square neither improbably large nor improbably small."""
    chi = np.sum((observed - expected) ** 2 / variance)
    assert 1e-3 < special.chdtrc(freedom, chi) < 1 - 1e-3


@pytest.mark.parametrize("n", [1, 3, 128, 55_000])
def test_each_epoch_is_a_permutation_of_its_own(n):
    found = np.concatenate([epochs(n, 3, jax.random.key(seed)) for seed in (0, 1)])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.sort(found), np.tile(np.arange(n), (6, 1)))
    if n >= 128:
        for a, b in itertools.combinations([*found, np.arange(n)], 2):
            assert np.mean(a == b) < 0.06


def test_partial_batch_is_dropped_and_epochs_follow_each_other():
    found = np.asarray(minibatch_indices(KEY, 10, 3, start=2, length=4))
    first, second = epochs(10, 2)
    expected = [first[6:9], second[0:3], second[3:6], second[6:9]]
    np.testing.assert_array_equal(found, expected)


def test_cutting_a_run_into_calls_changes_nothing():
    whole = minibatch_indices(KEY, 7, 2, 0, 40)
    traced = jax.jit(lambda start: minibatch_indices(KEY, 7, 2, start, 20))
    parts = [traced(0), traced(20)]
    np.testing.assert_array_equal(whole, jnp.concatenate(parts))
    _, scanned = jax.lax.scan(lambda c, t: (c, traced(t)), (), jnp.array([0, 20]))
    np.testing.assert_array_equal(scanned, parts)
    assert traced._cache_size() == 1


@pytest.mark.parametrize("start", [np.int64(5), jnp.uint32(5)])
def test_start_may_be_any_integer_scalar(start):
    np.testing.assert_array_equal(
        minibatch_indices(KEY, 7, 2, start, 3), minibatch_indices(KEY, 7, 2, 5, 3)
    )


def test_vmap_over_keys_and_starts_equals_a_loop():
    keys, starts = jax.random.split(KEY, 4), jnp.array([0, 3, 11, 100])
    call = lambda key, start: minibatch_indices(key, 1437, 128, start, 20)
    looped = [call(key, start) for key, start in zip(keys, starts, strict=True)]
    np.testing.assert_array_equal(jax.jit(jax.vmap(call))(keys, starts), looped)
    raw = call(jax.random.key_data(keys[0]), starts[0])
    np.testing.assert_array_equal(raw, looped[0])


def test_gradient_passes_through_gathered_batches():
    def loss(x):
        @jax.checkpoint
        def body(total, t):
            return total + x[minibatch_indices(KEY, 7, 2, t, 1)[0]].sum(), None

        return jax.lax.scan(body, 0.0, jnp.arange(3))[0]

    used = epochs(7, 1)[0, :6]
    gradient = jax.jit(jax.grad(loss))(jnp.ones(7))
    np.testing.assert_array_equal(gradient, np.isin(np.arange(7), used))


@pytest.mark.parametrize("n", [3, 5])
def test_all_permutations_are_equally_frequent(n):
    count = 60_000
    codes = epochs(n, count) @ n ** np.arange(n)
    _, observed = np.unique(codes, return_counts=True)
    assert len(observed) == math.factorial(n)
    expected = count / len(observed)
    assert_plausible(observed, expected, expected, len(observed) - 1)


def test_consecutive_epochs_are_independent():
    codes = epochs(3, 60_001) @ 3 ** np.arange(3)
    _, ranks = np.unique(codes, return_inverse=True)
    pairs = np.bincount(6 * ranks[:-1] + ranks[1:], minlength=36)
    assert_plausible(pairs, 60_000 / 36, 60_000 / 36, 35)


def test_each_example_is_equally_often_at_each_position():
    n, count = 33, 20_000
    keys = jax.random.split(KEY, count)
    found = jax.jit(jax.vmap(lambda key: minibatch_indices(key, n, n, 0, 1)[0]))(keys)
    table = np.stack([np.bincount(column, minlength=n) for column in found.T])
    # The sums of rows and columns are fixed: a covariance of count / (n - 1) times the
    # projection onto what is left, (n - 1)² dimensions.
    assert_plausible(table, count / n, count / (n - 1), (n - 1) ** 2)


def test_pairs_of_examples_meet_in_a_batch_by_chance():
    n, batch_size, count = 1437, 128, 4_000
    batch_of = np.argsort(epochs(n, count)) // batch_size  # 11 full, 29 left over
    sizes = np.bincount(np.arange(n) // batch_size)
    expected = count * (np.outer(sizes, sizes) - np.diag(sizes)) / (n * (n - 1))
    for a, b in [(0, 1), (0, 1024), (1435, 1436), (511, 512)]:
        pairs = np.bincount(12 * batch_of[:, a] + batch_of[:, b], minlength=144)
        assert_plausible(pairs, expected.ravel(), expected.ravel(), 143)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"num_examples": 0}, ValueError, "num_examples .*0"),
        ({"num_examples": 2.5}, ValueError, "num_examples .*2.5"),
        ({"batch_size": 0}, ValueError, "batch_size .*0"),
        ({"batch_size": 11}, ValueError, "batch_size must be at most .*10, got 11"),
        ({"length": 0}, ValueError, "length .*0"),
        ({"start": -1}, ValueError, "start .*-1"),
        ({"start": 1.0}, TypeError, "start must be an integer scalar, got 1.0"),
        ({"start": np.arange(2)}, TypeError, "start must be a"),
    ],
)
def test_bad_arguments_are_refused(changed, error, message):
    arguments = {"num_examples": 10, "batch_size": 2, "start": 0, "length": 3}
    with pytest.raises(error, match=message):
        minibatch_indices(KEY, **(arguments | changed))


def test_traced_start_must_be_an_integer_scalar():
    call = jax.jit(lambda start: minibatch_indices(KEY, 10, 2, start, 3))
    for start in (jnp.arange(2), jnp.float32(1)):
        with pytest.raises(TypeError, match="start must be an integer scalar"):
            call(start)
