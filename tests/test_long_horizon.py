"""Longrun beside its opponents: variants, verdicts, and a small comparison."""

import jax
import numpy as np
import pytest
from networks import random_weights

from experiments import (
    cells,
    horizons,
    long_horizon,
    paper,
    report,
    reproduce,
    task_table,
)
from experiments.weights import read_weights
from l2l_jax import Learned, save


@pytest.fixture
def weights(tmp_path):
    phi = random_weights("longrun")
    save(tmp_path / "longrun.npz", Learned("longrun", phi, {"step_size": 0.02}))
    found = read_weights([], tmp_path, horizons.WEIGHTS)
    return horizons.with_variants(found)


def test_variants_have_the_same_weights(weights):
    configs = {name: entry.learned.config for name, entry in weights.items()}
    assert configs == {
        "longrun": {"step_size": 0.02},
        **{
            name: {"step_size": 0.02, **config}
            for name, config in horizons.CONFIGS.items()
        },
        "longrun_quarter": {"step_size": 0.005},
        "longrun_fourfold": {"step_size": 0.08},
    }
    assert len({entry.sha256 for entry in weights.values()}) == 1
    assert len({entry.what for entry in weights.values()}) == len(configs)


def test_a_changed_variant_is_another_cell(weights, tmp_path, monkeypatch):
    """Its weights are the same; its numbers are not."""
    lab = cells.Laboratory(tmp_path / "cells", weights, num_runs=1)
    cell = paper.Cell("quadratic", 3, "longrun_nominal")
    cells.outcome(lab, cell)
    peek = lab._replace(compute=False)
    assert cells.outcome(peek, cell).lacks is None
    monkeypatch.setitem(horizons.CONFIGS, "longrun_nominal", {"averaging": 2.0})
    changed = horizons.with_variants({"longrun": weights["longrun"]})
    assert cells.outcome(peek._replace(weights=changed), cell).lacks == "not computed"


def test_without_anything_learned_a_cell_is_that_of_longrun():
    """On convolutional networks; elsewhere each has its own."""
    entries = horizons.EVIDENCE["table ablation"].entries
    cells_of = {(e.cell.task, e.column): e.cell.optimizer for e in entries}
    columns = list(dict.fromkeys(entry.column for entry in entries))
    of_mlps, of_cnns = (
        [cells_of[task, column] for column in columns]
        for task in ("digits_mlp", "digits_cnn_small")
    )
    assert len(set(of_mlps)) == len(columns)
    assert of_cnns[:-3] == of_mlps[:-3]
    assert of_cnns[-3:] == ["longrun"] * 3


def result(final):
    final = np.asarray(final, float)
    return cells.Result({}, final, {"mean": float(np.nanmean(final))}, None, None)


@pytest.mark.parametrize(
    ("ours", "other", "word"),
    [
        ([0.9, 1.8, 2.7], [1, 2, 3], "below"),
        ([1.1, 2.2, 3.3], [1, 2, 3], "above"),
        ([1.1, 1.9, 3.05], [1, 2, 3], "level"),
        ([0.1, 0.1, np.nan], [1, 2, 3], "above"),
        ([4, 5, 6], [1, 2, np.nan], "below"),
    ],
)
def test_runs_are_compared_in_pairs(ours, other, word):
    """Within two standard errors of the difference is level; who diverges has lost."""
    assert report.compare(np.array(ours), np.array(other))[2] == word


def test_verdicts_name_the_best_of_a_group():
    def cell(optimizer):
        return paper.Cell("quadratic", 5, optimizer)

    found = {cell("longrun"): result([1, 2, 3]), cell("adam"): result([5, 5, 5])}
    found |= {cell(name): result([8, 8, 8]) for name in horizons.SCHEDULED}
    found[cell("adamw_cosine")] = result([4, 4, 4.1])
    (row,) = long_horizon.verdicts(found)
    assert row["test"] == "quadratic, 5"
    assert row["known horizon"].startswith("below: 0.496")
    assert row["known horizon"].endswith("of AdamW, cosine")
    # Of the traditional ones five are not there.
    assert row["constant rates"] is None


@pytest.mark.parametrize(
    ("task", "same"), [("digits_cnn_small", True), ("quadratic", False)]
)
def test_verdicts_say_where_the_nominal_rule_is_all(task, same):
    """There Longrun has one cell with it, in the table too."""
    found = {paper.Cell(task, 5, "longrun"): result([1, 2, 3])}
    nominal = horizons.cell(task, 5, "longrun_nominal")
    assert (nominal in found) == same
    found.setdefault(nominal, result([2, 4, 6]))
    verdict = long_horizon.verdicts(found)[0]["nominal rule"]
    assert (verdict == long_horizon.SAME) == same
    assert verdict.startswith("below: 0.5") != same


def test_the_nominal_rule_is_in_every_row_of_every_table():
    for name, evidence in horizons.EVIDENCE.items():
        columns = {}
        for entry in evidence.entries:
            columns.setdefault(entry.row, {})[entry.column] = entry.cell
        for row, there in columns.items():
            nominal = [column for column in there if "nominal rule" in column]
            assert len(nominal) == 1, (name, row)
            # It is the weights that ship, unless nothing of them is used.
            optimizer = there[nominal[0]].optimizer
            convolutional = task_table.is_convolutional(there[nominal[0]].task)
            expected = "longrun" if convolutional else "longrun_nominal"
            assert optimizer == expected, (name, row)


def test_a_rise_is_that_of_a_twentieth():
    """A single low step is noise; a lower stretch is not."""
    flat = np.ones(400)
    flat[100] = 0.0
    assert long_horizon.rise(flat) == pytest.approx(1 / 0.95)
    flat[100:150] = 0.5
    assert long_horizon.rise(flat) == pytest.approx(2)
    assert long_horizon.rise(np.linspace(2, 1, 400)) == 1


def test_rises_are_those_of_long_runs_at_every_rate():
    curve = {"mean": np.r_[np.ones(50), np.full(50, 1.5)]}
    run = result([1, 2, 3])._replace(curve=curve, statistics={"diverged": 1})
    names = ("longrun", "longrun_quarter", "longrun_nominal", "adam")
    found = {paper.Cell("quadratic", 2_000, name): run for name in names}
    found[paper.Cell("quadratic", 100, "longrun")] = run
    rows = long_horizon.rises(found)
    assert [row["optimizer"] for row in rows] == ["Longrun", "rate x 0.25"]
    ends = [row["last twentieth over the lowest"] for row in rows]
    assert ends == pytest.approx([1.5, 1.5])
    assert all(row["diverged"] == 1 for row in rows)


def test_a_comparison_from_nothing(weights, tmp_path):
    """Ours, one that knows its horizon, one that does not; a page without a paper."""
    names = {
        **horizons.OURS,
        **horizons.NOMINAL,
        "adam": "Adam",
        "adam_cosine": "cosine",
    }
    entries = tuple(
        paper.Entry("square", column, paper.Cell("quadratic", 6, optimizer))
        for optimizer, column in names.items()
    )
    wanted = {"table given": paper.Evidence("Squares", entries)}
    lab = cells.Laboratory(tmp_path / "cells", weights, num_runs=2, quick=True)
    assert not reproduce.reproduce(lab, wanted, tmp_path)
    found = [cells.outcome(lab._replace(compute=False), e.cell) for e in entries]
    losses = [outcome.result.statistics["mean"] for outcome in found]
    assert len(set(losses)) == 4
    assert np.isfinite(losses).all()
    page = (tmp_path / "table_given.md").read_text()
    assert "Longrun with learned_scale = 0" in page
    assert "paper" not in page.split("Mean ±")[0]


def test_fewer_runs_of_long_horizons(weights, tmp_path):
    lab = cells.Laboratory(tmp_path, weights, long=horizons.FEWER)
    numbers = {
        test: cells.number_of_runs(lab, paper.Cell(*test, "longrun"))
        for test in (*horizons.SHORT, *horizons.LONG)
    }
    assert numbers["mnist_mlp", 100] == 100
    assert numbers["mnist_mlp", 2_000] == numbers["mnist_mlp", 10_000] == 20
    if jax.default_backend() == "cpu":
        assert numbers["mnist_cnn_ccpf", 2_000] == 5
