"""Cells of tables and figures: each is computed once, stored, and reused.

A cell is many runs of one optimizer at one rate on one task. Its file's name holds a
hash of all that decides its numbers; a program that was killed goes on where it was.
"""

import functools
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import common, paper, report, task_table
from experiments.weights import Weights
from l2l_jax import (
    Evaluation,
    Evaluator,
    evaluator,
    learned_optimizer,
    plotting,
)
from l2l_jax.baselines import EXPONENTS, SCHEDULED, Tuning, baseline, tune
from l2l_jax.tasks import accuracy

POINTS = 500  # of a stored curve, at most
LONG = 10_000  # steps from which there are fewer runs
STOPPED = "stopped; the same command goes on from here"


class NotStoredError(LookupError):
    """A cell would have to be computed, and was not to be."""


class Laboratory(NamedTuple):
    """Where and how cells are measured.

    Attributes:
      directory: of the stored cells; made when the first is stored.
      weights: learned optimizers by name.
      data_dir: of the data sets.
      source: "files" or "tfds".
      seed: of all randomness.
      num_runs: of each cell; None: as in the paper, see `number_of_runs`.
      quick: a look: hardly any runs and rates.
      compute: whether to compute what is not stored.
      long: steps from which there are fewer runs.
    """

    directory: pathlib.Path
    weights: Mapping[str, Weights]
    data_dir: str | None = None
    source: str = "files"
    seed: int = 0
    num_runs: int | None = None
    quick: bool = False
    compute: bool = True
    long: int = LONG


class Result(NamedTuple):
    """What is stored of a cell.

    Attributes:
      cell: all that decides its numbers.
      final: float (R,), final loss of each run, not finite ones as NaN.
      statistics: `Evaluation.summary`.
      curve: "step", "mean", "stderr" of the loss, of the runs that stayed finite; None
        while tuning.
      accuracy: on the test set, of each run; None while tuning and for other tasks.
    """

    cell: dict[str, Any]
    final: np.ndarray
    statistics: dict[str, Any]
    curve: dict[str, np.ndarray] | None
    accuracy: np.ndarray | None

    def summary(self) -> dict[str, Any]:
        """As `Evaluation.summary`: tuning takes the one for the other."""
        return self.statistics


class Outcome(NamedTuple):
    """A cell at its tuned rate.

    Attributes:
      result: None if there is none.
      lacks: why there is none.
      tuning: of a traditional optimizer.
    """

    result: Result | None
    lacks: str | None = None
    tuning: Tuning | None = None


def is_traditional(cell: paper.Cell) -> bool:
    """Whether the optimizer has a rate to tune, not weights."""
    return cell.optimizer in EXPONENTS


def number_of_runs(lab: Laboratory, cell: paper.Cell) -> int:
    """100 as in the paper, 20 of long runs; convolutional on a CPU: 20, and 5."""
    if lab.num_runs or lab.quick:
        return lab.num_runs or 2
    if task_table.is_convolutional(cell.task) and jax.default_backend() == "cpu":
        return 20 if cell.steps <= 200 else 5
    return 20 if cell.steps >= lab.long else 100


def tuning_runs(lab: Laboratory, cell: paper.Cell) -> int:
    """Runs at each rate; also how many run in one compiled program, here and later."""
    if lab.quick or task_table.is_convolutional(cell.task):
        return 1
    return 20 if cell.steps <= 200 else 5 if cell.steps < LONG else 2


def measure(
    lab: Laboratory,
    cell: paper.Cell,
    rate: float | None,
    num_runs: int,
    tuning: bool = False,
) -> Result:
    """What is stored of a cell; if nothing is, it is computed and stored first.

    Args:
      lab: where and how.
      cell: what.
      rate: learning rate, None for a learned optimizer.
      num_runs: R.
      tuning: randomness of the tuning, independent of that of the comparison; only
        final losses are stored.

    Raises:
      NotStoredError: it is not stored, and `lab.compute` is false.
    """
    weights = lab.weights.get(cell.optimizer)
    identity = {
        **cell._asdict(),
        "sha256": weights.sha256 if weights else None,
        "rate": rate,
        "runs": num_runs,
        "together": min(tuning_runs(lab, cell), num_runs),
        "seed": lab.seed,
        "purpose": "tuning" if tuning else "comparison",
    }
    if weights and weights.changes:
        identity["changes"] = dict(weights.changes)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = f"{cell.task}-{cell.steps}-{cell.optimizer}-{digest[:12]}.json"
    path = lab.directory / name
    if not path.exists():
        if not lab.compute:
            raise NotStoredError(name)
        lab.directory.mkdir(parents=True, exist_ok=True)
        content = compute(lab, cell, rate, num_runs, identity["together"], tuning)
        report.write_json(path, {"cell": identity, **content})
    # From the file even if just computed: resumed or not, the digits are the same.
    content = json.loads(path.read_text())
    if content["cell"] != identity:
        raise ValueError(f"{path} holds another cell than its name says; delete it")

    def array(values):
        return None if values is None else np.asarray(values, float)

    return Result(
        content["cell"],
        array(content["final"]),
        content["statistics"],
        content["curve"] and {k: array(v) for k, v in content["curve"].items()},
        array(content["accuracy"]),
    )


def compute(
    lab: Laboratory,
    cell: paper.Cell,
    rate: float | None,
    num_runs: int,
    together: int,
    tuning: bool,
) -> dict[str, Any]:
    """Evaluates, `together` runs at once; what is stored, as JSON."""
    start = time.perf_counter()
    if is_traditional(cell):
        # Compiled for one horizon only where it plays a part.
        horizon = cell.steps if cell.optimizer in SCHEDULED else 0
        family, weights = (cell.optimizer, json.dumps(horizon)), rate
    else:
        learned = lab.weights[cell.optimizer].learned
        config = json.dumps(learned.config, sort_keys=True)
        family, weights = (learned.kind, config), learned.params
    evaluate = _evaluator(cell.task, lab.data_dir, lab.source, *family).evaluate
    # The key does not depend on the optimizer: comparisons are paired.
    key = common.keys(lab.seed)[0 if tuning else 1]
    sizes = [min(together, num_runs - done) for done in range(0, num_runs, together)]
    correct = None
    if not tuning and task_table.make_module(cell.task) is not None:
        correct = _accuracy(cell.task, lab.data_dir, lab.source)
    parts, accuracies = [], []
    for i, size in enumerate(sizes):
        part = evaluate(weights, jax.random.fold_in(key, i), cell.steps, size)
        if correct:
            runs = (jax.tree.map(lambda x, i=i: x[i], part.params) for i in range(size))
            accuracies += [float(correct(params)) for params in runs]
        parts.append(part._replace(params=None))
    whole = Evaluation(
        np.concatenate([part.final for part in parts]),
        np.concatenate([part.curves for part in parts]),
        None,
    )
    return {
        "final": whole.final,
        "statistics": whole.summary(),
        "curve": None if tuning else condensed(whole.curves),
        "accuracy": accuracies or None,
        "seconds": round(time.perf_counter() - start, 2),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


# Tasks with data are large and evaluators hold compiled programs: only the latest stay.


@functools.lru_cache(maxsize=2)
def _task(name: str, data_dir: str | None, source: str):
    return task_table.make_task(name, data_dir, source)


@functools.lru_cache(maxsize=4)
def _evaluator(
    name: str, data_dir: str | None, source: str, kind: str, config: str
) -> Evaluator:
    task = _task(name, data_dir, source)
    if kind in EXPONENTS:
        return evaluator(task, baseline(kind, json.loads(config)))
    return evaluator(task, learned_optimizer(kind, **json.loads(config)).transform)


@functools.lru_cache(maxsize=2)
def _accuracy(name: str, data_dir: str | None, source: str):
    return accuracy(
        task_table.make_module(name),
        task_table.make_dataset(name, data_dir, source, "test"),
        pixel_range=task_table.pixel_range(name),
    )


def condensed(curves: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and standard error of curves (R, T), blocks of steps averaged before.

    There are at most `POINTS` blocks, all of the same length but the last; "step" is
    the middle of each. Runs that do not stay finite are left out.
    """
    finite = curves[np.isfinite(curves).all(axis=1)]
    length = math.ceil(curves.shape[1] / POINTS)
    begins = np.arange(0, curves.shape[1], length)
    ends = np.append(begins[1:], curves.shape[1])
    step = (begins + ends - 1) / 2
    if not len(finite):
        nothing = np.full(step.shape, np.nan)
        return {"step": step, "mean": nothing, "stderr": nothing}
    means = np.add.reduceat(finite.astype(float), begins, axis=1) / (ends - begins)
    mean, error = (
        np.array([float(f"{x:.6g}") for x in values]) for values in plotting.band(means)
    )
    return {"step": step, "mean": mean, "stderr": error}


def tuned(lab: Laboratory, cell: paper.Cell) -> Tuning:
    """The rate of a traditional optimizer, by `tune` with stored cells.

    The grid is that of the paper's authors; it goes on at its ends for tests that are
    not theirs. Convolutional networks have one run a rate, then three at each of the
    best three, and at those beyond an end that is the best.
    """
    num_runs = tuning_runs(lab, cell)
    theirs = (cell.task, cell.steps) in task_table.PAPER_TESTS
    grid: dict[str, Any] = {} if theirs else {"beyond": common.BEYOND}
    if lab.quick:
        grid = {"exponents": EXPONENTS[cell.optimizer][::4], "stride": 1}

    def evaluate(rate, key, num_steps, num_runs):
        del key, num_steps  # those of the cell
        return measure(lab, cell, float(rate), num_runs, tuning=True)

    found = tune(
        cell.optimizer,
        Evaluator(evaluate),
        common.keys(lab.seed)[0],
        num_steps=cell.steps,
        num_runs=num_runs,
        **grid,
    )
    if (
        lab.quick
        or not task_table.is_convolutional(cell.task)
        or found.best_rate is None
    ):
        return found
    return refined(
        found,
        lambda rate: measure(lab, cell, rate, 3, tuning=True).summary(),
        grid.get("beyond", 0),
    )


def refined(
    found: Tuning, again: Callable[[float], dict[str, Any]], beyond: int = 0
) -> Tuning:
    """Decides among the best three rates by `again(rate)`, a summary of more runs.

    If the best of them is at an end, the grid 2^(-k/2) goes on there by one k after the
    other until the last is not the best, at most `beyond` times.
    """
    rows = sorted(
        (row for row in found.table if not row["not_finite"]),
        key=lambda row: row["mean"],
    )
    rates = [row["rate"] for row in found.table]
    better = {}

    def score(rate: float) -> float:
        row = better[rate]
        return math.inf if row["not_finite"] else row["mean"]

    def best_with(new: Sequence[float]) -> float:
        better.update({rate: {"rate": rate, **again(rate)} for rate in new})
        return min(better, key=score)

    best = best_with([row["rate"] for row in rows[:3]])
    for _ in range(beyond):
        way = {min(rates): 1, max(rates): -1}.get(best, 0)
        if not way or math.isinf(score(best)):
            break
        rates.append(2.0 ** (-(round(-2 * math.log2(best)) + way) / 2))
        best = best_with(rates[-1:])
    table = {row["rate"]: row for row in found.table} | better
    return Tuning(
        found.name,
        best if math.isfinite(score(best)) else None,
        best in (min(rates), max(rates)),
        [table[rate] for rate in sorted(table, reverse=True)],
    )


def outcome(lab: Laboratory, cell: paper.Cell) -> Outcome:
    """The cell of a table: at the tuned rate, or with the weights of that name."""
    try:
        if not is_traditional(cell):
            if cell.optimizer not in lab.weights:
                return Outcome(None, f"no weights {cell.optimizer}")
            return Outcome(measure(lab, cell, None, number_of_runs(lab, cell)))
        tuning = tuned(lab, cell)
        if tuning.best_rate is None:
            return Outcome(None, "no rate without a diverging run", tuning)
        result = measure(lab, cell, tuning.best_rate, number_of_runs(lab, cell))
        return Outcome(result, None, tuning)
    except NotStoredError:
        return Outcome(None, "not computed")


def cost(lab: Laboratory, cell: paper.Cell) -> float:
    """About the seconds of a cell with its tuning, on two cores; for the time left."""
    # Seconds of a gradient and of a learned step, a run; compiling apart.
    gradient, learned = (
        (0.04, 0.01) if task_table.is_convolutional(cell.task) else (0.0012, 0.005)
    )
    runs = number_of_runs(lab, cell)
    if not is_traditional(cell):
        return 20 + cell.steps * runs * (gradient + learned)
    rates = 5 if lab.quick else 11
    runs += rates * tuning_runs(lab, cell) + 9 * task_table.is_convolutional(cell.task)
    return 20 + cell.steps * runs * gradient
