r"""Repeats the tables and figures of the RNNprop paper, each cell beside the paper's.

    python -m experiments.reproduce --table=2,3,4 --figure=2,3,4,5,6,7,8,9 \
        --data_dir=DIR --weights_dir=WEIGHTS --outdir=runs/paper

WEIGHTS holds `<name>.npz` of each learned optimizer, see `experiments.paper.WEIGHTS`;
default are those that ship with the package, and for control experiments those in
experiments/results. What has no weights stands as "-" and is listed at the end. Each
cell is stored in OUTDIR/cells as soon as it is computed, so that the same command goes
on where an earlier one was stopped; --nocompute only writes what is there. Beside the
paper's there are --table=tests (the 22 tests of its authors' program, all optimizers),
transfer (where the 2016 paper says that DMoptimizer transfers) and seeds (several
meta-seeds).

--all is estimated at eleven hours on 2 idle cores, table 2 takes six minutes there;
--quick is a look whose numbers mean nothing: table 2 in a minute, all, most of it CNNs,
in half an hour. Adam's final loss in table 2 should be .31, .28, .26 and .31, its rates
those of the authors or their neighbours on the grid.
"""

import pathlib
from collections.abc import Mapping, Sequence

import jax
from absl import flags

from experiments import (
    cells,
    common,
    options,
    pages,
    paper,
    pictures,
    report,
    task_table,
)
from experiments.weights import SHIPPED, Weights, read_weights

FLAGS = flags.FLAGS
flags.DEFINE_list("table", [], "Tables, by number or name.")
flags.DEFINE_list("figure", [], "Figures, by number or name.")
flags.DEFINE_bool("all", False, "All tables and figures.")
flags.DEFINE_list("weights", [], "Learned optimizers, each `name=file or run`.")
flags.DEFINE_string(
    "weights_dir",
    str(SHIPPED),
    "Directory of the other learned optimizers, `<name>.npz`; default: the package's."
    " Those that are nowhere else are taken from experiments/results.",
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
options.define_outdir("runs/paper", "Directory of the results.")
options.define_directory(
    "cells",
    None,
    "Directory of computed cells, which several comparisons may share; default: 'cells'"
    " in that of the results.",
)

QUICK_STEPS = 200


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
    rows = [pages.row_of(lab, *pair) for pair in pairs]
    directory.mkdir(parents=True, exist_ok=True)
    base = directory / pages.stem(name)
    text = pages.markdown(lab, name, evidence, rows, bool(evidence.picture))
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
            pictures.panels(evidence, rows, outcomes),
        )
    print(
        f"\n{name.capitalize()}: {evidence.title}\n\n{pages.matrix(rows)}", flush=True
    )
    return [f"{name}: {line}" for line in pages.missing(rows)]


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
    peek = lab._replace(compute=False)
    todo = {
        cell: cells.cost(lab, cell)
        for cell in paper.cells_of(wanted.values())
        if lab.compute and cells.outcome(peek, cell).lacks == "not computed"
    }
    names = [cell.task for cell in todo]
    task_table.check_data(names, lab.data_dir, lab.source)
    lacking = []
    # Smoothing 0: the time left by the mean speed, in units of estimated cost.
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, left {remaining}"
    shown = {"bar_format": layout, "smoothing": 0, "disable": not todo}
    with tqdm(total=sum(todo.values()), **shown) as bar:
        for name, evidence in wanted.items():
            for cell in paper.cells_of([evidence]):
                if cell in todo:
                    bar.set_description_str(
                        f"{cell.task}, {cell.steps}, {cell.optimizer}"
                    )
                    cells.outcome(lab, cell)
                    bar.update(todo.pop(cell))
            lacking += write(lab, name, evidence, directory)
    return lacking


def chosen(
    tables: Sequence[str],
    figures: Sequence[str],
    evidence: Mapping[str, paper.Evidence] = paper.EVIDENCE,
) -> dict[str, paper.Evidence]:
    """The tables and figures of those numbers or names."""
    names = [f"table {x}" for x in tables] + [f"figure {x}" for x in figures]
    known = ", ".join(evidence)
    if not names:
        raise ValueError(f"name a --table or a --figure, or --all; known are {known}")
    if unknown := [name for name in names if name not in evidence]:
        raise ValueError(f"unknown {', '.join(unknown)}; known are {known}")
    return {name: evidence[name] for name in names}


def laboratory(
    directory: pathlib.Path, weights: Mapping[str, Weights], long: int
) -> cells.Laboratory:
    """The one that the flags describe."""
    return cells.Laboratory(
        pathlib.Path(FLAGS.cells) if FLAGS.cells else directory / "cells",
        weights,
        FLAGS.data_dir,
        FLAGS.data_source,
        FLAGS.seed,
        FLAGS.num_runs,
        FLAGS.quick,
        FLAGS.compute,
        long,
    )


def main(argv: list[str]) -> None:
    """Reproduces what is asked for and lists what is missing."""
    del argv
    wanted = paper.EVIDENCE if FLAGS.all else chosen(FLAGS.table, FLAGS.figure)
    directory = pathlib.Path(FLAGS.outdir) / ("quick" if FLAGS.quick else "")
    weights = read_weights(FLAGS.weights, FLAGS.weights_dir, trained=paper.TRAINED)
    lab = laboratory(directory, weights, cells.LONG)
    print(f"writing to {directory}, on {jax.devices()[0].device_kind}")
    lacking = reproduce(lab, wanted, directory)
    if lacking:
        print("\nmissing:", *lacking, sep="\n  ")


if __name__ == "__main__":
    common.run(main, stopped=cells.STOPPED)
