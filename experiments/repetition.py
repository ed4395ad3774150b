"""Cells that are stored, computed once more from nothing, and how far both agree."""

import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from experiments import cells, common, paper, report


class Stored(NamedTuple):
    """A cell that was measured before.

    Attributes:
      lab: by which.
      cell: what.
      outcome: what came out.
    """

    lab: cells.Laboratory
    cell: paper.Cell
    outcome: cells.Outcome


def stored(
    labs: Iterable[tuple[cells.Laboratory, Mapping[str, paper.Evidence]]],
    *limits: Collection[str | int] | None,
) -> list[Stored]:
    """What is there of the cells of tables and figures, each once.

    Args:
      labs: those that read, each with the evidence whose cells it has.
      limits: tasks, steps, optimizers; None: all.
    """
    found = {}
    for lab, tables in labs:
        for cell in paper.cells_of(tables.values()):
            key = cell, cells.number_of_runs(lab, cell)
            wanted = (x is None or y in x for x, y in zip(limits, cell, strict=True))
            if key not in found and all(wanted):
                found[key] = Stored(lab, cell, cells.outcome(lab, cell))
    return [one for one in found.values() if one.outcome.result]


def alike(first: Iterable[Any], second: Iterable[Any]) -> str:
    """How many of some things are equal."""
    equal = [a == b or (a != a and b != b) for a, b in zip(first, second, strict=True)]
    return f"{sum(equal)} of {len(equal)}"


def compare(one: Stored, now: cells.Outcome) -> dict[str, Any]:
    """One row: how far what came out now is what came out then."""
    then = one.outcome
    row: dict[str, Any] = {**one.cell._asdict(), "runs": len(then.result.final)}
    row["stored"] = then.result.statistics["mean"]
    row |= dict.fromkeys(("anew", "difference", "runs alike"))
    if now.result:
        row["anew"] = now.result.statistics["mean"]
        if None not in (row["stored"], row["anew"]):
            row["difference"] = row["anew"] / row["stored"] - 1
        row["runs alike"] = alike(then.result.final, now.result.final)
    row["rate"] = then.tuning and then.tuning.best_rate
    row |= dict.fromkeys(("rate anew", "rates alike"))
    if then.tuning and now.tuning:
        row["rate anew"] = now.tuning.best_rate
        # A grid that goes on beyond an end may have gone on elsewhere.
        losses = [
            {x["rate"]: x["mean"] for x in t.table} for t in (then.tuning, now.tuning)
        ]
        rates = sorted(losses[0] | losses[1])
        row["rates alike"] = alike(
            *([some.get(rate, "not tried") for rate in rates] for some in losses)
        )
    return row


def write(rows: list[dict[str, Any]], directory: pathlib.Path) -> None:
    """Both files."""
    device = jax.devices()[0].device_kind
    text = f"# Cells computed once more\n\n{report.table(rows, list(rows[0]))}\n"
    text += f"\njax {jax.__version__}, {device}.\n"
    report.write_csv(directory / "repeat.csv", rows)
    report.write(directory / "repeat.md", lambda file: file.write_text(text))


def again(one: Stored, directory: pathlib.Path, tune: bool = True) -> cells.Outcome:
    """The cell, computed into the directory; untuned: at the rate that is stored."""
    lab = one.lab._replace(directory=directory, compute=True)
    if tune or not one.outcome.tuning:
        return cells.outcome(lab, one.cell)
    runs = cells.number_of_runs(lab, one.cell)
    return cells.Outcome(
        cells.measure(lab, one.cell, one.outcome.tuning.best_rate, runs)
    )


def over(
    lab: cells.Laboratory, name: str, cell: paper.Cell, now: cells.Result | None
) -> dict[str, Any]:
    """What another optimizer has stored on the test, divided by what came out."""
    ratio = error = None
    if now:
        lab = lab._replace(num_runs=len(now.final))
        other = cells.outcome(lab, cell._replace(optimizer=name)).result
        if other:
            ratio, error, _ = report.compare(other.final, now.final)
    return {f"{name} over it": ratio, "2 stderr": error}


def repeat(
    chosen: Sequence[Stored],
    directory: pathlib.Path,
    tune: bool = True,
    beside: tuple[cells.Laboratory, str] | None = None,
) -> list[dict[str, Any]]:
    """Computes into the directory, and writes after each cell.

    Args:
      chosen: which.
      directory: of the new cells and of the tables.
      tune: whether traditional optimizers are tuned once more, or measured at the rate
        that is stored.
      beside: an optimizer to divide by each, and who reads what is stored of it.
    """
    rows = []
    for one in common.progress(chosen, lambda one: " ".join(map(str, one.cell))):
        now = again(one, directory / "cells", tune)
        row = compare(one, now)
        if beside:
            row |= over(*beside, one.cell, now.result)
        rows.append(row)
        write(rows, directory)
    return rows
