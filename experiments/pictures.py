"""The picture of a figure: who has which colour, what the legend says, the panels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import cells, horizons, paper, report, task_table
from l2l_jax import plotting


def styles(columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour each, see `report.colours`; traditional optimizers dashed."""
    traditional = paper.TRADITIONAL.values()
    known = paper.LEARNED | paper.TRADITIONAL | horizons.OURS
    names = {word: name for name, word in known.items()}
    colours = report.colours(names.get(column, column) for column in columns)
    return {
        column: {
            "color": colours[names.get(column, column)],
            "linestyle": "--" if column in traditional else "-",
            "linewidth": 1.3 if column in traditional else 2.0,
        }
        for column in columns
    }


def labels(rows: Sequence[Mapping[str, Any]], by_panel: bool) -> dict[str, str]:
    """The legend's text of each column, with diverged runs and what is not there."""
    found = {}
    for column in dict.fromkeys(row["column"] for row in rows):
        here = [row for row in rows if row["column"] == column]
        counts = [
            "-" if row["lacks"] else f"{row['diverged']}/{row['runs']}" for row in here
        ]
        if all(row["lacks"] for row in here):
            found[column] = f"{column} ({here[0]['lacks']})"
        elif any(row["diverged"] for row in here) or "-" in counts:
            if not by_panel:
                diverged, runs = (
                    sum(row[key] or 0 for row in here) for key in ("diverged", "runs")
                )
                absent = f"; {counts.count('-')} cells missing" * ("-" in counts)
                counts = [f"{diverged}/{runs}{absent}"]
            found[column] = f"{column} (diverged: {', '.join(counts)})"
        else:
            found[column] = column
    return found


def rates_of(outcome: cells.Outcome) -> list[dict[str, Any]]:
    """The rates that were tried, ascending."""
    return outcome.tuning.table if outcome.tuning else []


def panels(
    evidence: paper.Evidence,
    rows: Sequence[Mapping[str, Any]],
    outcomes: Sequence[cells.Outcome],
) -> list[plotting.Panel]:
    """What `report.write_panels` draws of a figure."""
    names = labels(rows, evidence.picture == "curves")
    style = styles(list(names))
    tasks = [row["task"] for row in rows]
    firsts = [
        one.result.curve["mean"][0]
        for one in outcomes
        if one.result and np.isfinite(one.result.curve["mean"][0])
    ]
    # No line begins higher; one that ends there has diverged.
    top = 1.5 * max(firsts) if firsts else None
    entries = list(zip(rows, outcomes, strict=True))
    loss = f"loss ({' or '.join(dict.fromkeys(task_table.unit(t) for t in tasks))})"

    def line(column, x, y, error=None, **more):
        # None, in a mean, is a number that is not finite.
        x, y, error = (None if v is None else np.array(v, float) for v in (x, y, error))
        return plotting.Line(names[column], x, y, error, style[column] | more)

    if evidence.picture == "rates":
        rates = [row["rate"] for _, one in entries for row in rates_of(one)]
        ends = [min(rates), max(rates)] if rates else [0.001, 1.0]
        lines = []
        for row, one in entries:
            if one.tuning is None:
                lines.append(line(row["column"], ends, [row["mean"]] * 2))
                continue
            tried = rates_of(one)
            # A mean of the runs that are left says nothing of a rate that loses runs.
            y = [None if r["not_finite"] else r["mean"] for r in tried]
            x, error = ([r[key] for r in tried] for key in ("rate", "stderr"))
            lines.append(line(row["column"], x, y, error, marker="o", markersize=3))
        title = rows[0]["row"]
        return [
            plotting.Panel(title, "learning rate", f"final {loss}", lines, top, "xy")
        ]
    if evidence.picture == "rows":
        lines = []
        for column in names:
            here = [row for row in rows if row["column"] == column]
            y, error = ([row[key] for row in here] for key in ("mean", "stderr"))
            x = [int(row["row"]) for row in here]
            lines.append(line(column, x, y, error, marker="o", markersize=4))
        return [
            plotting.Panel("", "hidden layers", f"final {loss}", lines, top, log="")
        ]
    found = []
    for title in dict.fromkeys(row["row"] for row in rows):
        lines = []
        for row, one in entries:
            if row["row"] == title:
                curve = one.result.curve if one.result else None
                values = [] if curve is None else (curve["mean"], curve["stderr"])
                x = [] if curve is None else curve["step"]
                lines.append(line(row["column"], x, *(values or ([], []))))
        found.append(plotting.Panel(title, "step", f"minibatch {loss}", lines, top))
    return found
