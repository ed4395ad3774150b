"""Cells: their rates, curves and accuracy, and the images of halved data sets."""

import itertools

import jax
import numpy as np
import pytest

from experiments import cells, paper, task_table
from l2l_jax import Evaluation, Evaluator
from l2l_jax.baselines import Tuning
from l2l_jax.plotting import band
from l2l_jax.tasks import MLP, Dataset, accuracy, load_dataset


def test_convolutional_rates_are_decided_by_more_runs():
    means = {8.0: 5.0, 4.0: 3.0, 2.0: 1.0, 1.0: 2.0, 0.5: 9.0}
    table = [{"rate": r, "mean": m, "not_finite": r == 8} for r, m in means.items()]
    better = {4.0: 2.5, 2.0: 2.6, 1.0: 2.4}
    again = lambda rate: {"mean": better[rate], "not_finite": 0}
    found = cells.refined(Tuning("sgd", 2.0, False, table), again)
    assert found.best_rate == 1
    assert not found.edge
    assert [row["mean"] for row in found.table] == [5.0, 2.5, 2.6, 2.4, 9.0]


@pytest.mark.parametrize("end", [1, -1])
@pytest.mark.parametrize(
    ("beyond", "best", "edge", "tried"),
    [(0, 0, True, 3), (1, 1, True, 4), (9, 2, False, 6)],
)
def test_they_go_on_beyond_an_end_that_more_runs_find_the_best(
    end, beyond, best, edge, tried
):
    """Rates 2^(-k/2); by one run k = 1 is the best of -1, 0, 1, by three it is 0."""
    rate = lambda k: 2.0 ** (-end * k / 2)
    one = {rate(-2): 3.0, rate(-1): 1.0, rate(0): 2.0}
    table = [
        {"rate": r, "mean": one[r], "not_finite": 0} for r in sorted(one, reverse=True)
    ]
    asked = []

    def again(r):
        asked.append(r)
        k = round(-end * 2 * np.log2(r))
        return {"mean": abs(k - 2) + 1.0, "not_finite": k == 4}

    found = cells.refined(Tuning("sgd", rate(-1), False, table), again, beyond)
    assert found.best_rate == pytest.approx(rate(best))
    assert found.edge == edge
    assert len(asked) == len(set(asked)) == len(found.table) == tried
    rates = [row["rate"] for row in found.table]
    assert rates == sorted(rates, reverse=True)


def test_condensed_curves():
    curves = np.vstack(
        [np.arange(1201.0), np.arange(1201.0) + 2, np.full(1201, np.nan)]
    )
    found = cells.condensed(curves)
    assert all(len(values) == 401 for values in found.values())
    np.testing.assert_allclose(found["step"][[0, 1, -1]], [1, 4, 1200])
    np.testing.assert_allclose(found["mean"], found["step"] + 1)
    np.testing.assert_allclose(found["stderr"], 1)
    assert np.isnan(cells.condensed(curves[2:])["mean"]).all()
    assert cells.condensed(curves[:, :3])["step"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(band(np.ones((1, 3)))[1], 0)


def random_mlp(rng, runs=()):
    """θ of the base MLP on digits, and what it answers to images in [0, 1]."""
    sizes = (64, 20, 10)
    params = {
        f"Dense_{i}": {
            "kernel": rng.normal(size=(*runs, *size)).astype("float32"),
            "bias": rng.normal(size=(*runs, size[1])).astype("float32"),
        }
        for i, size in enumerate(itertools.pairwise(sizes))
    }

    def answers(images):
        x = images.reshape(-1, 64)
        for i in range(2):
            layer = params[f"Dense_{i}"]
            x = x @ layer["kernel"] + layer["bias"][..., None, :]
            x = x if i else 1 / (1 + np.exp(-x))
        return np.argmax(x, axis=-1)

    return params, answers


def test_accuracy_is_the_fraction_of_right_answers():
    rng = np.random.default_rng(0)
    data = Dataset(
        rng.integers(0, 256, (25, 8, 8, 1), np.uint8), rng.integers(0, 3, 25, np.int32)
    )
    params, answers = random_mlp(rng)
    expected = np.mean(answers(data.images / 255 - 0.5) == data.labels)
    # 10 does not divide the number of images.
    found = accuracy(MLP(), data, pixel_range=(-0.5, 0.5), batch_size=10)(params)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="batch_size"):
        accuracy(MLP(), data, batch_size=0)
    with pytest.raises(ValueError, match="pixel_range"):
        accuracy(MLP(), data, pixel_range=(1.0, 0.0))


def test_groups_of_runs_make_one_cell(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    asked, expected = [], []

    def evaluate(weights, key, num_steps, num_runs):
        params, answers = random_mlp(rng, (num_runs,))
        data = load_dataset("digits", "test")
        expected.extend(np.mean(answers(data.images / 255) == data.labels, axis=1))
        asked.append((weights, jax.random.key_data(key).tolist(), num_steps, num_runs))
        losses = np.full(num_runs, len(asked), float)
        return Evaluation(losses, losses[:, None] * np.arange(num_steps, 0, -1), params)

    monkeypatch.setattr(cells, "_evaluator", lambda *_: Evaluator(evaluate))
    monkeypatch.setattr(cells, "tuning_runs", lambda *_: 2)
    lab = cells.Laboratory(tmp_path, {})
    cell = paper.Cell("digits_mlp", 4, "sgd")
    result = cells.measure(lab, cell, 0.5, 5)
    assert [(a[0], a[2], a[3]) for a in asked] == [(0.5, 4, n) for n in (2, 2, 1)]
    assert len({str(a[1]) for a in asked}) == 3  # each group has its own randomness
    assert result.final.tolist() == [1, 1, 2, 2, 3]
    assert result.statistics["runs"] == 5
    assert result.curve["mean"][-1] == 1.8
    np.testing.assert_allclose(result.accuracy, expected, rtol=1e-6)
    tuning = cells.measure(lab, cell, 0.5, 2, tuning=True)
    assert (tuning.curve, tuning.accuracy) == (None, None)
    assert str(asked[-1][1]) not in {str(a[1]) for a in asked[:-1]}


def test_half_the_resolution(monkeypatch):
    """Means of 2 x 2 pixels, rounded; one of them counts as four."""
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1) * 16
    whole = Dataset(images, np.zeros(1, np.int32))
    monkeypatch.setattr(task_table, "load_dataset", lambda *_: whole)
    found = task_table.make_dataset("mnist14_mlp").images
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, :, :, 0], [[40, 72], [168, 200]])
    assert task_table.make_dataset("mnist_mlp") is whole
    assert task_table.pixel_range("mnist14_mlp") == (0, 4)
