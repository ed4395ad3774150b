r"""Computes stored cells of the tables once more, from nothing, and compares both.

    python -m experiments.repeat --task=mnist_mlp --steps=100 --optimizers=adam,sgd \
        --data_dir=DIR --outdir=runs/repeat

Cells are those of `experiments.reproduce` and `experiments.long_horizon` with what
ships; the example takes a minute on one core. New ones go to OUTDIR/cells, those of the
tuning too, and one that is there is not computed again, so that the same command goes
on where it was stopped. Of each, OUTDIR/repeat.csv and repeat.md say: the mean final
loss then and now, by what share they differ, how many runs have the very same digits,
and of a tuning the rate then and now, and at how many rates all digits are the same.
With --notune traditional optimizers are measured at the stored rate alone, which spares
most of the time. With --beside=longrun each row says, too, what Longrun's stored loss
is of the one that came out, and twice the standard error of that, runs paired.
Expect equal digits on as many cores of a like processor; elsewhere roundings differ,
and what is convolutional, learned, or far from converged shows it first.
"""

import pathlib

from absl import flags

from experiments import (
    cells,
    common,
    horizons,
    options,
    paper,
    repetition,
    report,
    task_table,
)
from experiments.weights import RESULTS, SHIPPED, read_weights

FLAGS = flags.FLAGS
common.define_tasks("Tasks; default: all.")
options.define_numbers("steps", None, "Steps of the runs; default: all.")
TABLES = paper.EVIDENCE, horizons.EVIDENCE
THEIRS, OURS = (
    {cell.optimizer for cell in paper.cells_of(some.values())} for some in TABLES
)
options.define_names(
    "optimizers", None, sorted(THEIRS | OURS), "Optimizers; default: all."
)
flags.DEFINE_bool("tune", True, "Tune once more, or measure at the stored rates.")
flags.DEFINE_enum(
    "beside", None, sorted(OURS), "Optimizer whose stored loss to divide by each."
)
options.define_directory(
    "stored", str(RESULTS / "paper" / "cells"), "Directory of the stored cells."
)
options.define_outdir("runs/repeat", "Directory of what is computed.")


def laboratories() -> list[cells.Laboratory]:
    """Those that read what is stored: of the paper's tables, and of long_horizon's."""
    lab = cells.Laboratory(
        pathlib.Path(FLAGS.stored),
        read_weights([], SHIPPED, trained=paper.TRAINED),
        FLAGS.data_dir,
        FLAGS.data_source,
        compute=False,
    )
    ours = read_weights([], SHIPPED, horizons.WEIGHTS, horizons.TRAINED)
    long = lab._replace(weights=horizons.with_variants(ours), long=horizons.FEWER)
    return [lab, long]


def main(argv: list[str]) -> None:
    """Chooses, computes, compares."""
    del argv
    labs = laboratories()
    limits = FLAGS.task, FLAGS.steps, FLAGS.optimizers
    chosen = repetition.stored(zip(labs, TABLES, strict=True), *limits)
    if not chosen:
        raise ValueError(
            f"{FLAGS.stored} has no cell of --task={FLAGS.task},"
            f" --steps={FLAGS.steps}, --optimizers={FLAGS.optimizers}"
        )
    tasks = [one.cell.task for one in chosen]
    task_table.check_data(tasks, FLAGS.data_dir, FLAGS.data_source)
    directory = pathlib.Path(FLAGS.outdir)
    print(f"{len(chosen)} cells, writing to {directory}", flush=True)
    beside = (labs[-1], FLAGS.beside) if FLAGS.beside else None
    rows = repetition.repeat(chosen, directory, FLAGS.tune, beside)
    print(report.table(rows, list(rows[0])))


if __name__ == "__main__":
    common.run(
        main,
        quick={"task": ["digits_mlp"], "steps": [100], "optimizers": ["longrun"]},
        stopped=cells.STOPPED,
    )
