"""Tables and figures: stored cells, resuming, marks, files; accuracy and final θ."""

import csv
import itertools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_weights

from experiments import cells, pages, paper, pictures, report, reproduce, task_table
from l2l_jax import (
    Evaluation,
    Evaluator,
    Learned,
    evaluator,
    quadratic_task,
    save,
)
from l2l_jax.baselines import BASELINES, Tuning
from l2l_jax.plotting import band
from l2l_jax.tasks import MLP, Dataset, accuracy, load_dataset

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 5


def entry(column, optimizer, published=None):
    cell = paper.Cell("quadratic", STEPS, optimizer)
    return paper.Entry("square", column, cell, published)


SPEC = {
    # No optimizer is below .01 after five steps, and each below a million.
    "table 2": paper.Evidence(
        "Squares",
        (
            entry("Adam", "adam", 0.01),
            entry("SGD", "sgd", 1e6),
            entry("RNNprop", "rnnprop"),
            entry("DMoptimizer", "dm", 1.0),
        ),
    ),
    "figure 4": paper.Evidence(
        "Squares, curves",
        (entry("RNNprop", "rnnprop"), entry("DMoptimizer", "dm"), entry("SGD", "sgd")),
        "curves",
    ),
    "figure 3": paper.Evidence(
        "Squares, rates", (entry("RNNprop", "rnnprop"), entry("Adam", "adam")), "rates"
    ),
    "figure 6": paper.Evidence(
        "Squares, depth",
        (
            entry("RNNprop", "rnnprop")._replace(row="1"),
            entry("SGD", "sgd")._replace(row="2"),
        ),
        "rows",
    ),
}


def save_random(path, seed):
    phi = random_weights("rnnprop", (4,), 4, seed=seed)
    save(path, Learned("rnnprop", phi, {"step_size": 0.01}))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    save_random(directory / "rnnprop.npz", 0)
    return directory


def laboratory(directory, weights):
    return cells.Laboratory(
        directory / "cells", cells.read_weights([], weights), num_runs=2, quick=True
    )


def contents(directory):
    return {
        path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory, weights):
    """All of SPEC from nothing: the laboratory, its directory, what is missing."""
    directory = tmp_path_factory.mktemp("done")
    lab = laboratory(directory, weights)
    return lab, directory, reproduce.reproduce(lab, SPEC, directory)


def test_every_cell_is_computed_once(done, monkeypatch):
    lab, directory, lacking = done
    # Five rates of two optimizers, the two at their rates, and the learned one.
    assert len(list(lab.directory.iterdir())) == 13
    before = contents(directory)
    monkeypatch.setattr(cells, "compute", None)
    assert reproduce.reproduce(lab, SPEC, directory) == lacking
    assert contents(directory) == before


def test_a_stopped_program_goes_on_to_the_same_files(
    done, tmp_path, weights, monkeypatch
):
    _, directory, lacking = done
    compute, calls = cells.compute, []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(cells, "compute", counted)
    lab = laboratory(tmp_path, weights)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(lab, SPEC, tmp_path)
    assert len(list(lab.directory.iterdir())) == 3
    assert reproduce.reproduce(lab, SPEC, tmp_path) == lacking
    assert len(calls) == 14  # 13 cells and the one that was interrupted
    assert contents(tmp_path) == contents(directory)


def test_what_decides_the_numbers_decides_the_cell(done, weights, tmp_path):
    lab = done[0]._replace(compute=False)
    cell = paper.Cell("quadratic", STEPS, "rnnprop")
    assert cells.outcome(lab, cell).result.final.shape == (2,)
    save_random(tmp_path / "other.npz", 1)
    file = f"rnnprop={tmp_path / 'other.npz'}"
    for other in (
        lab._replace(seed=1),
        lab._replace(num_runs=3),
        lab._replace(weights=cells.read_weights([file], weights)),
    ):
        assert cells.outcome(other, cell) == (None, "not computed", None)


def test_table_files_agree(done):
    lab, directory, _ = done
    rows = json.loads((directory / "table_2.json").read_text())["rows"]
    text = (directory / "table_2.md").read_text()
    with (directory / "table_2.csv").open() as stream:
        plain = list(csv.DictReader(stream))
    assert [row["column"] for row in rows] == [row["column"] for row in plain]
    for row, of_csv in zip(rows[:3], plain, strict=False):
        np.testing.assert_allclose(np.mean(row["final"]), row["mean"], rtol=1e-6)
        assert float(of_csv["mean"]) == row["mean"]
        assert pages.with_error(row["mean"], row["stderr"]) in text
        assert row["runs"] == len(row["final"]) == 2
        assert row["accuracy"] is None  # it classifies nothing
    adam, sgd, learned, missing = rows
    assert (adam["check"], sgd["check"], learned["check"]) == ("worse", "ok", None)
    np.testing.assert_allclose(adam["ratio"], adam["mean"] / 0.01)
    assert adam["rate"] in [2.0 ** (-k / 2) for k in range(2, 19)]
    assert learned["rate"] is None
    assert missing["lacks"] == "no weights dm"
    assert text.count("**worse**") == 3  # in both tables and in what explains them
    assert "| - (1.00)" in text
    assert "QUICK" in text
    assert lab.weights["rnnprop"].sha256 in text


def test_what_is_missing_is_listed(done):
    line = "square, DMoptimizer: no weights dm"
    assert done[2] == [f"table 2: {line}", f"figure 4: {line}"]


def test_pictures_are_written(done):
    for name in ("figure_3", "figure_4", "figure_6"):
        png, svg = (done[1] / f"{name}.{kind}" for kind in ("png", "svg"))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert png.stat().st_size > 5_000
        assert "</svg>" in svg.read_text()
    assert f"{(done[1] / 'figure_4.md').read_text()}".count("figure_4.png") == 1


def test_the_mark_needs_more_than_two_hundredths_and_a_tenth():
    assert not pages.is_worse(0.1199, 0.1)
    assert pages.is_worse(0.1201, 0.1)
    assert not pages.is_worse(10.9, 10)
    assert pages.is_worse(11.1, 10)


def test_diverged_runs_stand_in_row_and_legend(done):
    one = cells.outcome(done[0], paper.Cell("quadratic", STEPS, "sgd"))
    statistics = {"mean": None, "stderr": None, "runs": 2, "diverged": 2}
    one = one._replace(result=one.result._replace(statistics=statistics))
    row = pages.row_of(done[0], entry("SGD", "sgd", 1.0), one)
    assert (row["check"], row["ratio"], row["diverged"]) == ("worse", None, 2)
    assert pictures.labels([row, row], True) == {"SGD": "SGD (diverged: 2/2, 2/2)"}
    assert pictures.labels([row, row], False) == {"SGD": "SGD (diverged: 4/4)"}
    assert "not finite (1.00) **worse**" in pages.matrix([row])


def test_convolutional_rates_are_decided_by_more_runs():
    means = {8.0: 5.0, 4.0: 3.0, 2.0: 1.0, 1.0: 2.0, 0.5: 9.0}
    table = [{"rate": r, "mean": m, "not_finite": r == 8} for r, m in means.items()]
    better = {4.0: 2.5, 2.0: 2.6, 1.0: 2.4}
    again = lambda rate: {"mean": better[rate], "not_finite": 0}
    found = cells.refined(Tuning("sgd", 2.0, False, table), again)
    assert found.best_rate == 1
    assert not found.edge
    assert [row["mean"] for row in found.table] == [5.0, 2.5, 2.6, 2.4, 9.0]


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


def test_runs_are_those_of_the_paper(tmp_path):
    lab = cells.Laboratory(tmp_path, {})
    runs = {
        cell: (cells.number_of_runs(lab, cell), cells.tuning_runs(lab, cell))
        for cell in paper.AUTHORS_RATES
    }
    assert runs[paper.Cell("mnist_mlp", 100, "adam")] == (100, 20)
    assert runs[paper.Cell("mnist_mlp", 2_000, "adam")] == (100, 5)
    assert runs[paper.Cell("mnist_mlp", 10_000, "adam")] == (20, 2)
    if jax.default_backend() == "cpu":
        assert runs[paper.Cell("mnist_cnn_ccpf", 100, "adam")] == (20, 1)


def test_the_paper_is_there():
    tests = {cell[:2] for cell in paper.AUTHORS_RATES}
    assert len(tests) == len(paper.AUTHORS_RATES) == 22
    assert tests == set(task_table.PAPER_TESTS)
    shown = {entry.cell for entry in paper.EVIDENCE["table tests"].entries}
    assert {cell[:2] for cell in shown} == tests
    assert set(paper.AUTHORS_RATES) < shown
    assert set(paper.PUBLISHED) <= {
        entry.cell
        for name in "234"
        for entry in paper.EVIDENCE[f"table {name}"].entries
    }
    names = [f"table {n}" for n in (2, 3, 4)] + [f"figure {n}" for n in range(2, 10)]
    assert set(names) <= set(paper.EVIDENCE)
    for evidence in paper.EVIDENCE.values():
        assert {e.cell.optimizer for e in evidence.entries} <= {
            *BASELINES,
            *paper.WEIGHTS,
        }
        assert {e.cell.task for e in evidence.entries} <= set(task_table.TASKS)
        rows = [(e.row, e.column) for e in evidence.entries]
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("table", "row", "column", "published"),
    [
        ("table 2", "sigmoid", "DMoptimizer", 0.24),
        ("table 2", "ELU", "DMoptimizer", 13.51),
        ("table 2", "tanh", "RNNprop", 0.28),
        ("table 3", "Default", "Adagrad", 0.54),
        ("table 3", "2 Layers", "RNNprop", 0.28),
        ("table 3", "Small Noise", "Adam", 0.39),
        ("table 4", "Base MLP, 15k", "RNNprop", 0.30),
        ("table 4", "ReLU, 15k", "No CC", 0.32),
        ("table 4", "ReLU, 5k", "Adam", 0.28),
    ],
)
def test_published_numbers(table, row, column, published):
    found = [e for e in paper.EVIDENCE[table].entries if e[:2] == (row, column)]
    assert [e.published for e in found] == [published]


def test_a_look_is_never_compared_with_longer_runs():
    short = paper.shortened(paper.EVIDENCE["figure 2"], 200)
    assert {e.cell.steps for e in short.entries} == {200}
    table = paper.EVIDENCE["table 2"]
    assert paper.shortened(table, 200) == table
    assert {e.published for e in paper.shortened(table, 50).entries} == {None}


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


def test_unknown_names_are_refused_with_the_known_ones(weights):
    with pytest.raises(ValueError, match=r"unknown table 7; .*figure 9"):
        reproduce.chosen(["2", "7"], [])
    with pytest.raises(ValueError, match="--all"):
        reproduce.chosen([], [])
    assert list(reproduce.chosen(["4"], ["9"])) == ["table 4", "figure 9"]
    with pytest.raises(ValueError, match=r"'nothing=x.npz'.* norandomscaling"):
        cells.read_weights(["nothing=x.npz"], weights)
    with pytest.raises(ValueError, match="no_directory"):
        cells.read_weights([], "no_directory")
    with pytest.raises(ValueError, match=r"name in .*'nothing=x.npz' is unknown"):
        cells.read_weights(["nothing=x.npz"], weights)
    with pytest.raises(FileNotFoundError, match=r"no_file.npz"):
        cells.read_weights(["dm=no_file.npz"], weights)


def test_data_of_all_cells_are_there_before_the_first(tmp_path):
    last = entry("SGD", "sgd")
    last = last._replace(cell=last.cell._replace(task="mnist_mlp"))
    wanted = {"table 2": paper.Evidence("Mixed", (entry("Adam", "adam"), last))}
    lab = cells.Laboratory(tmp_path / "cells", {}, str(tmp_path / "none"), quick=True)
    with pytest.raises(FileNotFoundError, match="none is no directory"):
        reproduce.reproduce(lab, wanted, tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_data_are_one_line(tmp_path):
    flags = ["--quick", "--figure=9", f"--outdir={tmp_path}"]
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.reproduce", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "error: " in ended.stderr
    assert "data_dir" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_optimizer_has_one_colour_in_all_pictures():
    everyone = [*paper.LEARNED.values(), *paper.TRADITIONAL.values()]
    here = pictures.styles(everyone)
    there = pictures.styles(["Longrun", "nominal rule", "RNNprop", "Adam"])
    by_name = report.colours(["mine", "rnnprop", "adam"])
    for found in (here, there):
        colours = [style["color"] for style in found.values()]
        assert len(set(colours)) == len(colours)
    assert here["RNNprop"]["color"] == there["RNNprop"]["color"] == by_name["rnnprop"]
    assert here["Adam"]["color"] == there["Adam"]["color"] == by_name["adam"]
    assert len(set(by_name.values())) == 3
