"""The paper's evidence: tests, published numbers, how many runs, whose weights."""

import shutil

import jax
import pytest

from experiments import cells, horizons, paper, task_table
from experiments.weights import RESULTS, SHIPPED, read_weights
from l2l_jax import load
from l2l_jax.baselines import BASELINES


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
        ("table 2", "tanh", "RNNprop, meta-seed 0", 0.28),
        ("table 2", "tanh", "RNNprop, meta-seed 2", 0.28),
        ("table 3", "Default", "Adagrad", 0.54),
        ("table 3", "2 Layers", "RNNprop", 0.28),
        ("table 3", "Small Noise", "Adam", 0.39),
        ("table 4", "Base MLP, 15k", "RNNprop, meta-seed 2", 0.30),
        ("table 4", "Base MLP, 15k", "RNNprop, meta-seed 7", 0.30),
        ("table 4", "ReLU, 15k", "No CC, meta-seed 0", 0.32),
        ("table 4", "ReLU, 10k", "RNNprop, meta-seed 0", 0.29),
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


def test_weights_are_what_their_names_say():
    found = read_weights([], SHIPPED, trained=paper.TRAINED)
    assert {"rnnprop", "dm", "rnnprop_15k", "noconvex_5k"} <= set(found)
    usual = {"optimizer": "rnnprop", "convex": True, "scaling": 3.0, "seed": 0}
    differing = {
        "noconvex": {"convex": False},
        "norandomscaling": {"scaling": 0.0},
        "rnnprop_seed1": {"seed": 1},
        "rnnprop_seed2": {"seed": 2},
        "rnnprop_seed7": {"seed": 7},
        "dm_tricks": {"optimizer": "dm"},
        "dm": {"optimizer": "dm", "convex": False, "scaling": 0.0, "seed": 6},
    }
    named = {"rnnprop": {"seed": 7}}  # not those of "rnnprop_15k"
    for name, weights in found.items():
        what, _, thousands = name.removesuffix("k").rpartition("_")
        wanted = usual | named.get(name, differing.get(name, differing.get(what, {})))
        if thousands.isdigit():
            wanted["iterations"] = 1000 * int(thousands)
        training = weights.learned.training
        assert wanted.items() <= training.items(), name


@pytest.mark.parametrize("name", horizons.TRAINED)
def test_weights_of_longrun_are_what_their_names_say(name):
    learned = load(RESULTS / horizons.TRAINED[name])
    wanted = {"seed": int(name[-1]), "sizes": {"signals": 4}}
    if "signals" in name:  # the other number
        wanted = {"seed": 0, "sizes": {"signals": int(name[-1])}}
    assert wanted.items() <= learned.training.items()


def test_what_is_in_the_directory_or_named_goes_first(tmp_path):
    def sha256(name, *files):
        found = read_weights(files, tmp_path, trained=paper.TRAINED)
        return found[name].sha256

    kept = sha256("rnnprop_5k")
    shutil.copy(RESULTS / paper.TRAINED["rnnprop_10k"], tmp_path / "new.npz")
    named = sha256("rnnprop_5k", f"rnnprop_5k={tmp_path / 'new.npz'}")
    assert named == sha256("rnnprop_10k") != kept
    assert sha256("rnnprop_5k") == kept
    (tmp_path / "new.npz").rename(tmp_path / "rnnprop_5k.npz")
    assert sha256("rnnprop_5k") == named
    run = RESULTS / "rnnprop_seed7_mnist"
    chosen = read_weights([], SHIPPED)["rnnprop"].learned.training["iterations"]
    found = read_weights([f"rnnprop={run}"], tmp_path)["rnnprop"].learned
    assert found.training["iterations"] == chosen
