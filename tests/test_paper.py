"""The paper's evidence: tests, published numbers, how many runs."""

import jax
import pytest

from experiments import cells, paper, task_table
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
