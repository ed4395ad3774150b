"""The page of a table or figure: its rows, beside the paper's, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import cells, paper, report, task_table
from l2l_jax import plotting

SHOWN = (
    *("row", "column", "paper", "ours", "ratio", "check", "runs", "diverged"),
    *("accuracy", "rate", "authors' rate"),
)


def is_worse(ours: float, published: float) -> bool:
    """Whether a loss is above the paper's by more than the larger of .02 and 10 %."""
    return ours > published + max(0.02, 0.1 * published)


def row_of(lab: cells.Laboratory, entry: paper.Entry, outcome: cells.Outcome) -> dict:
    """An entry and what was measured as one flat row; what is not there is None."""
    row: dict[str, Any] = {
        "row": entry.row,
        "column": entry.column,
        **entry.cell._asdict(),
        "paper": entry.published,
        **dict.fromkeys(("mean", "stderr", "ratio", "check", "runs", "diverged")),
        **dict.fromkeys(("not_finite", "accuracy", "accuracy_stderr", "rate", "edge")),
        "authors_rate": paper.AUTHORS_RATES.get(entry.cell),
        "tuning_runs": None,
        "lacks": outcome.lacks,
    }
    if outcome.tuning:
        row |= {"edge": outcome.tuning.edge}
        row |= {"tuning_runs": cells.tuning_runs(lab, entry.cell)}
    if outcome.result is None:
        return row
    statistics = outcome.result.statistics
    row |= {key: statistics[key] for key in row.keys() & statistics.keys()}
    row["rate"] = outcome.result.cell["rate"]
    if entry.published is not None:
        # All runs at infinity are worse than any number.
        mean = np.inf if row["mean"] is None else row["mean"]
        row["ratio"] = None if row["mean"] is None else mean / entry.published
        row["check"] = "worse" if is_worse(mean, entry.published) else "ok"
    if outcome.result.accuracy is not None:
        mean, error = plotting.band(outcome.result.accuracy)
        row |= {"accuracy": float(mean), "accuracy_stderr": float(error)}
    return row


def with_error(mean: float | None, error: float | None) -> str:
    """`0.312 ± 0.001`."""
    if mean is None:
        return "not finite"
    return f"{mean:.3g}" if error is None else f"{mean:.3g} ± {error:.1g}"


def readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for people."""
    measured = row["lacks"] is None
    return {
        **row,
        "ours": with_error(row["mean"], row["stderr"]) if measured else "-",
        "ratio": None if row["ratio"] is None else f"{row['ratio']:.2f}",
        "check": "**worse**" if row["check"] == "worse" else row["check"],
        "accuracy": None
        if row["accuracy"] is None
        else with_error(row["accuracy"], row["accuracy_stderr"]),
        "rate": f"{row['rate']:.4g}{' (edge)' * row['edge']}" if row["rate"] else None,
        "authors' rate": row["authors_rate"],
    }


def matrix(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as in the paper: ours, and the paper's in brackets."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        text = "-"
        if row["lacks"] is None:
            text = "not finite" if row["mean"] is None else f"{row['mean']:.3g}"
        text += f" ({row['paper']:.2f})" if row["paper"] is not None else ""
        text += " **worse**" if row["check"] == "worse" else ""
        lines.setdefault(row["row"], {" ": row["row"]})[row["column"]] = text
    columns = dict.fromkeys(row["column"] for row in rows)
    return report.table(list(lines.values()), [" ", *columns])


def missing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could not be shown, and why."""
    return [
        f"{row['row']}, {row['column']}: {row['lacks']}" for row in rows if row["lacks"]
    ]


def runs_of_tuning(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many runs each rate had when it was tuned, in words."""
    counts = {
        (row["task"], row["steps"]): row["tuning_runs"]
        for row in rows
        if row["tuning_runs"]
    }
    if not counts:
        return ""
    words = "; ".join(
        f"{number} ("
        + ", ".join(f"{t}, {n}" for (t, n), c in counts.items() if c == number)
        + ")"
        for number in sorted(set(counts.values()))
    )
    more = any(task_table.is_convolutional(task) for task, _ in counts)
    return f"Tuning, runs at each rate by task and steps: {words}." + more * (
        " Convolutional networks: then three at each of the best three rates."
    )


def stem(name: str) -> str:
    """Name of the files of a table or figure."""
    return name.replace(" ", "_")


def markdown(
    lab: cells.Laboratory,
    name: str,
    evidence: paper.Evidence,
    rows: Sequence[Mapping[str, Any]],
    picture: bool,
) -> str:
    """The page of a table or figure."""
    names = {row["optimizer"] for row in rows} & set(lab.weights)
    weights = [
        f"- {weight}: {lab.weights[weight].what};"
        f" {lab.weights[weight].learned.training.get('iterations', '?')} iterations,"
        f" SHA-256 {lab.weights[weight].sha256}"
        for weight in sorted(names)
    ]
    lacking = missing(rows)
    published = any(row["paper"] is not None for row in rows)
    parts = [
        f"# {name.capitalize()}: {evidence.title}",
        "**QUICK: a look with hardly any runs, rates and steps; no result.**"
        if lab.quick
        else "",
        f"The paper: {evidence.says}" if evidence.says else "",
        f"![{evidence.title}]({stem(name)}.png)" if picture else "",
        "Final loss: ours (the paper's)." if published else "Final loss.",
        matrix(rows),
        "**worse**: above the paper's by more than the larger of .02 and 10 %."
        if published
        else "",
        "Mean ±"
        " standard error of the runs with a finite final loss; diverged: how many ended"
        " above their first loss or not finite. Accuracy: on the test set. Rates"
        " 2^(-k/2) were tuned by the final loss.",
        runs_of_tuning(rows),
        report.table([readable(row) for row in rows], SHOWN),
        "\n".join(["Missing:", "", *(f"- {line}" for line in lacking)])
        if lacking
        else "",
        "\n".join(["Weights:", "", *weights]) if weights else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
