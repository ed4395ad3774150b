"""Cells computed once more: which, what is compared, and what is written."""

import csv
import json

import numpy as np
import pytest
from binaries import binary

from experiments import cells, paper, repetition
from l2l_jax.baselines import Tuning

CELL = paper.Cell("quadratic", 5, "sgd")
OTHER = paper.Cell("quadratic", 6, "momentum")
TABLES = {
    name: paper.Evidence(name, (paper.Entry("", "", cell),))
    for name, cell in (("one", CELL), ("other", OTHER))
}


def outcome(final, losses=None):
    final = np.asarray(final, float)
    finite = final[np.isfinite(final)]
    statistics = {"mean": float(finite.mean()) if finite.size else None}
    table = [{"rate": k, "mean": v} for k, v in (losses or {}).items()]
    tuning = Tuning("sgd", table[0]["rate"], False, table) if losses else None
    return cells.Outcome(cells.Result({}, final, statistics, None, None), None, tuning)


def compared(then, now):
    return repetition.compare(repetition.Stored(None, CELL, then), now)


def test_equal_digits_are_counted_and_means_compared():
    row = compared(outcome([1, 2, np.nan]), outcome([1, 2.5, np.nan]))
    assert (row["task"], row["steps"], row["optimizer"]) == CELL
    assert row["runs alike"] == "2 of 3"
    assert (row["stored"], row["anew"]) == (1.5, 1.75)
    assert row["difference"] == pytest.approx(1 / 6)
    assert row["rates alike"] is None


def test_where_nothing_stays_finite_there_is_no_difference():
    row = compared(outcome([np.nan]), outcome([np.nan]))
    assert row["runs alike"] == "1 of 1"
    assert row["difference"] is None


def test_what_is_lacking_now_stands_there():
    row = compared(outcome([1, 2]), cells.Outcome(None, "not computed"))
    assert row["stored"] == 1.5
    assert row["anew"] is row["runs alike"] is row["difference"] is None


def test_rates_are_compared_where_either_was_tried():
    then = outcome([1], {0.5: 1.0, 1.0: 2.0, 2.0: None})
    now = outcome([1], {1.0: 2.5, 0.5: 1.0, 2.0: None, 4.0: 9.0})
    row = compared(then, now)
    assert (row["rate"], row["rate anew"]) == (0.5, 1.0)
    assert row["rates alike"] == "2 of 4"


@pytest.fixture
def lab(tmp_path):
    """One of the two cells is stored."""
    lab = cells.Laboratory(tmp_path / "stored", {}, num_runs=2, quick=True)
    cells.outcome(lab, CELL)
    return lab._replace(compute=False)


def test_what_is_stored_is_chosen_once(lab):
    labs = [(lab, TABLES), (lab, {"again": TABLES["one"]})]
    for limits in ((None,) * 3, (["quadratic"], [5], ["sgd"])):
        (one,) = repetition.stored(labs, *limits)
        assert one.cell == CELL
    assert not repetition.stored(labs, None, [6], None)
    assert not repetition.stored(labs, ["digits_mlp"], None, None)


def test_all_is_computed_anew_and_only_once(lab, tmp_path):
    chosen = repetition.stored([(lab, TABLES)], None, None, None)
    # A stored loss that is not what comes out.
    (changed,) = (
        path
        for path in lab.directory.iterdir()
        if json.loads(path.read_text())["cell"]["purpose"] == "comparison"
    )
    content = json.loads(changed.read_text())
    content["final"][0] *= 2
    changed.write_text(json.dumps(content))
    (wrong,) = repetition.stored([(lab, TABLES)], None, None, None)

    directory = tmp_path / "anew"
    (row,) = repetition.repeat(chosen, directory)
    assert row["runs alike"] == "2 of 2"
    assert row["rates alike"].split()[0] == row["rates alike"].split()[2] != "0"
    times = {path: path.stat().st_mtime_ns for path in directory.glob("cells/*")}
    assert len(times) == len(list(lab.directory.iterdir()))
    (row,) = repetition.repeat([wrong], directory)
    assert row["runs alike"] == "1 of 2"
    assert times == {path: path.stat().st_mtime_ns for path in times}

    text = (directory / "repeat.csv").read_text()
    (written,) = csv.DictReader(text.splitlines())
    assert written["runs alike"] == "1 of 2"
    assert "| 1 of 2 " in (directory / "repeat.md").read_text()


def test_untuned_the_stored_rate_is_taken(lab, tmp_path):
    (one,) = repetition.stored([(lab, TABLES)], None, None, None)
    better = one.outcome.tuning._replace(best_rate=0.125)
    changed = one._replace(outcome=one.outcome._replace(tuning=better))
    for chosen, alike in ((one, "2 of 2"), (changed, "0 of 2")):
        (row,) = repetition.repeat([chosen], tmp_path / alike, tune=False)
        assert row["runs alike"] == alike
        assert row["rate"] == chosen.outcome.tuning.best_rate
        assert row["rate anew"] is row["rates alike"] is None
        (path,) = tmp_path.glob(f"{alike}/cells/*")
        cell = json.loads(path.read_text())["cell"]
        assert (cell["rate"], cell["purpose"]) == (row["rate"], "comparison")


def test_another_optimizer_is_divided_by_each(lab, tmp_path):
    other = CELL._replace(optimizer="momentum")
    chosen = repetition.stored([(lab, TABLES)], None, None, None)
    (row,) = repetition.repeat(chosen, tmp_path, beside=(lab, "momentum"))
    assert row["momentum over it"] is row["2 stderr"] is None  # nothing is stored
    losses = cells.outcome(lab._replace(compute=True), other).result.final
    (row,) = repetition.repeat(chosen, tmp_path, beside=(lab, "momentum"))
    ours = chosen[0].outcome.result.final
    assert row["momentum over it"] == pytest.approx(losses.mean() / ours.mean())
    assert row["2 stderr"] > 0
    assert "momentum over it" in (tmp_path / "repeat.md").read_text()


def test_nothing_stored_is_said(tmp_path):
    flags = f"--stored={tmp_path}", "--steps=7", f"--outdir={tmp_path / 'anew'}"
    said = binary("repeat", *flags, fails=True)
    assert "has no cell of" in said
    assert "--steps=[7]" in said
    assert not (tmp_path / "anew").exists()
