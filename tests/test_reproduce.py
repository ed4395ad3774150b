"""Tables and figures: stored cells, resuming, marks, files."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from networks import random_weights

from experiments import cells, pages, paper, pictures, report, reproduce
from experiments.weights import read_weights
from l2l_jax import Learned, save

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
        directory / "cells", read_weights([], weights), num_runs=2, quick=True
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
        lab._replace(weights=read_weights([file], weights)),
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


def test_unknown_names_are_refused_with_the_known_ones(weights):
    with pytest.raises(ValueError, match=r"unknown table 7; .*figure 9"):
        reproduce.chosen(["2", "7"], [])
    with pytest.raises(ValueError, match="--all"):
        reproduce.chosen([], [])
    assert list(reproduce.chosen(["4"], ["9"])) == ["table 4", "figure 9"]
    with pytest.raises(ValueError, match=r"'nothing=x.npz'.* norandomscaling"):
        read_weights(["nothing=x.npz"], weights)
    with pytest.raises(ValueError, match="no_directory"):
        read_weights([], "no_directory")
    with pytest.raises(ValueError, match=r"name in .*'nothing=x.npz' is unknown"):
        read_weights(["nothing=x.npz"], weights)
    with pytest.raises(FileNotFoundError, match=r"no_file.npz"):
        read_weights(["dm=no_file.npz"], weights)


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
