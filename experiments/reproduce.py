r"""Repeats the tables and figures of the RNNprop paper, each cell beside the paper's.

    python -m experiments.reproduce --table=2,3,4 --figure=2,3,4,5,6,7,8,9 \
        --data_dir=DIR --weights_dir=WEIGHTS --outdir=experiments/results/paper

WEIGHTS holds `<name>.npz` of each learned optimizer, see `experiments.paper.WEIGHTS`;
default are those that ship with the package. What has no weights stands as "-" and is
listed at the end. Each cell is stored in OUTDIR/cells as soon as it is computed, so
that the same command goes on where an earlier one was stopped; --nocompute only writes
what is there. Beside the paper's there are --table=tests (the 22 tests of its authors'
program, all optimizers), transfer (where the 2016 paper says that DMoptimizer
transfers) and seeds (several meta-seeds).

--all is estimated at eleven hours on 2 idle cores, table 2 alone at half an hour;
--quick is a look in minutes whose numbers mean nothing. Adam's final loss in table 2
should be .31, .28, .26 and .31, its rates those of the authors or their neighbours on
the grid.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

import l2l_jax
from experiments import cells, common, paper, report

FLAGS = flags.FLAGS
flags.DEFINE_list("table", [], "Tables: 2, 3, 4, tests, transfer, seeds.")
flags.DEFINE_list("figure", [], "Figures: 2 to 9.")
flags.DEFINE_bool("all", False, "All tables and figures.")
flags.DEFINE_list("weights", [], "Learned optimizers, each `name=file`.")
flags.DEFINE_string(
    "weights_dir",
    str(pathlib.Path(l2l_jax.__file__).parent / "pretrained"),
    "Directory of the other learned optimizers, `<name>.npz`; default: the package's.",
)
flags.DEFINE_integer(
    "num_runs",
    None,
    "Runs of each cell; default: 100, but 20 for 10,000 steps and, on a CPU, for"
    " convolutional networks.",
    lower_bound=1,
)
flags.DEFINE_bool(
    "quick",
    False,
    "A look in minutes: 2 runs, few rates, at most 200 steps; results go to"
    " OUTDIR/quick.",
)
flags.DEFINE_bool("compute", True, "Compute what is not stored.")
flags.DEFINE_integer("seed", 0, "Of all randomness.")
flags.DEFINE_string("outdir", "experiments/results/paper", "Directory of the results.")

QUICK_STEPS = 200
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
        mean, error = report.band(outcome.result.accuracy)
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
    more = any(cells.is_convolutional(task) for task, _ in counts)
    return f"Tuning, runs at each rate by task and steps: {words}." + more * (
        " Convolutional networks: then three at each of the best three rates."
    )


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
        f"- {weight}: {paper.WEIGHTS[weight]};"
        f" {lab.weights[weight].learned.training.get('iterations', '?')} iterations,"
        f" SHA-256 {lab.weights[weight].sha256}"
        for weight in sorted(names)
    ]
    lacking = missing(rows)
    parts = [
        f"# {name.capitalize()}: {evidence.title}",
        "**QUICK: a look with hardly any runs, rates and steps; no result.**"
        if lab.quick
        else "",
        f"The paper: {evidence.says}" if evidence.says else "",
        f"![{evidence.title}]({stem(name)}.png)" if picture else "",
        "Final loss: ours (the paper's).",
        matrix(rows),
        "**worse**: above the paper's by more than the larger of .02 and 10 %. Mean ±"
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


# Pictures.


def styles(columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour each, the same in all pictures; traditional optimizers dashed."""
    learned, traditional = paper.LEARNED.values(), paper.TRADITIONAL.values()
    colours = dict(zip([*learned, *traditional], report.COLOURS, strict=True))
    spare = iter(report.COLOURS[2:])
    return {
        column: {
            "color": colours.get(column) or next(spare),
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


def panels(
    evidence: paper.Evidence,
    rows: Sequence[Mapping[str, Any]],
    outcomes: Sequence[cells.Outcome],
) -> list[report.Panel]:
    """What `report.write_panels` draws of a figure."""
    names = labels(rows, evidence.picture == "curves")
    style = styles(list(names))
    firsts = [
        one.result.curve["mean"][0]
        for one in outcomes
        if one.result and np.isfinite(one.result.curve["mean"][0])
    ]
    # No line begins higher; one that ends there has diverged.
    top = 1.5 * max(firsts) if firsts else None
    entries = list(zip(rows, outcomes, strict=True))
    squared = all(row["task"].startswith("sine") for row in rows)
    loss = "loss (squared error)" if squared else "loss (nats)"

    def line(column, x, y, error=None, **more):
        # None, in a mean, is a number that is not finite.
        x, y, error = (None if v is None else np.array(v, float) for v in (x, y, error))
        return report.Line(names[column], x, y, error, style[column] | more)

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
        return [report.Panel(title, "learning rate", f"final {loss}", lines, top, "xy")]
    if evidence.picture == "rows":
        lines = []
        for column in names:
            here = [row for row in rows if row["column"] == column]
            y, error = ([row[key] for row in here] for key in ("mean", "stderr"))
            x = [int(row["row"]) for row in here]
            lines.append(line(column, x, y, error, marker="o", markersize=4))
        return [report.Panel("", "hidden layers", f"final {loss}", lines, top, log="")]
    found = []
    for title in dict.fromkeys(row["row"] for row in rows):
        lines = []
        for row, one in entries:
            if row["row"] == title:
                curve = one.result.curve if one.result else None
                values = [] if curve is None else (curve["mean"], curve["stderr"])
                x = [] if curve is None else curve["step"]
                lines.append(line(row["column"], x, *(values or ([], []))))
        found.append(report.Panel(title, "step", f"minibatch {loss}", lines, top))
    return found


def rates_of(outcome: cells.Outcome) -> list[dict[str, Any]]:
    """The rates that were tried, ascending."""
    return outcome.tuning.table if outcome.tuning else []


# Files.


def stem(name: str) -> str:
    """Name of the files of a table or figure."""
    return name.replace(" ", "_")


def write(
    lab: cells.Laboratory,
    name: str,
    evidence: paper.Evidence,
    directory: pathlib.Path,
) -> list[str]:
    """Writes one table or figure from cells, computing those that are not stored.

    Returns:
      What is missing.
    """
    outcomes = [cells.outcome(lab, entry.cell) for entry in evidence.entries]
    pairs = list(zip(evidence.entries, outcomes, strict=True))
    rows = [row_of(lab, *pair) for pair in pairs]
    directory.mkdir(parents=True, exist_ok=True)
    base = directory / stem(name)
    text = markdown(lab, name, evidence, rows, bool(evidence.picture))
    report.write(base.with_suffix(".md"), lambda file: file.write_text(text))
    report.write_csv(base.with_suffix(".csv"), rows)
    content = [
        {**row, "final": one.result.final if one.result else None}
        for row, one in zip(rows, outcomes, strict=True)
    ]
    report.write_json(
        base.with_suffix(".json"),
        {
            "title": evidence.title,
            "quick": lab.quick,
            "seed": lab.seed,
            "weights": {key: value.sha256 for key, value in lab.weights.items()},
            "rows": content,
        },
    )
    if evidence.picture:
        report.write_panels(
            [base.with_suffix(suffix) for suffix in (".png", ".svg")],
            panels(evidence, rows, outcomes),
        )
    print(f"\n{name.capitalize()}: {evidence.title}\n\n{matrix(rows)}", flush=True)
    return [f"{name}: {line}" for line in missing(rows)]


def reproduce(
    lab: cells.Laboratory,
    wanted: Mapping[str, paper.Evidence],
    directory: pathlib.Path,
) -> list[str]:
    """Computes and writes tables and figures, with a bar and the time left.

    Args:
      lab: where and how cells are measured.
      wanted: by name, such as those of `paper.EVIDENCE`.
      directory: of the files.

    Returns:
      What is missing.
    """
    from tqdm import tqdm

    if lab.quick:
        wanted = {
            name: paper.shortened(one, QUICK_STEPS) for name, one in wanted.items()
        }
    entries = [entry for one in wanted.values() for entry in one.entries]
    peek = lab._replace(compute=False)
    todo = {
        entry.cell: cells.cost(lab, entry.cell)
        for entry in dict.fromkeys(entries)
        if lab.compute and cells.outcome(peek, entry.cell).lacks == "not computed"
    }
    lacking = []
    # Smoothing 0: the time left by the mean speed, in units of estimated cost.
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, left {remaining}"
    with tqdm(total=sum(todo.values()), bar_format=layout, smoothing=0) as bar:
        for name, evidence in wanted.items():
            for cell in dict.fromkeys(entry.cell for entry in evidence.entries):
                if cell in todo:
                    bar.set_description(f"{cell.task}, {cell.steps}, {cell.optimizer}")
                    cells.outcome(lab, cell)
                    bar.update(todo.pop(cell))
            lacking += write(lab, name, evidence, directory)
    return lacking


def chosen(tables: Sequence[str], figures: Sequence[str]) -> dict[str, paper.Evidence]:
    """The tables and figures of those numbers or names."""
    names = [f"table {x}" for x in tables] + [f"figure {x}" for x in figures]
    known = ", ".join(paper.EVIDENCE)
    if not names:
        raise ValueError(f"name a --table or a --figure, or --all; known are {known}")
    if unknown := [name for name in names if name not in paper.EVIDENCE]:
        raise ValueError(f"unknown {', '.join(unknown)}; known are {known}")
    return {name: paper.EVIDENCE[name] for name in names}


def main(argv: list[str]) -> None:
    """Reproduces what is asked for and lists what is missing."""
    del argv
    wanted = paper.EVIDENCE if FLAGS.all else chosen(FLAGS.table, FLAGS.figure)
    directory = pathlib.Path(FLAGS.outdir) / ("quick" if FLAGS.quick else "")
    lab = cells.Laboratory(
        directory / "cells",
        cells.read_weights(FLAGS.weights, FLAGS.weights_dir),
        FLAGS.data_dir,
        FLAGS.data_source,
        FLAGS.seed,
        FLAGS.num_runs,
        FLAGS.quick,
        FLAGS.compute,
    )
    print(f"writing to {directory}, on {jax.devices()[0].device_kind}")
    try:
        lacking = reproduce(lab, wanted, directory)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    if lacking:
        print("\nmissing:", *lacking, sep="\n  ")


if __name__ == "__main__":
    common.run(main)
