r"""Computes stored cells of the tables once more, from nothing, and compares both.

    python -m experiments.repeat --task=mnist_mlp --steps=100 --optimizers=adam,sgd \
        --data_dir=DIR --outdir=runs/repeat

Cells are those of `experiments.reproduce` and `experiments.long_horizon` with what
ships; the example takes a minute on one core. New ones go to OUTDIR/cells, those of the
tuning too, and one that is there is not computed again, so that the same command goes
on where it was stopped. Of each, OUTDIR/repeat.csv and repeat.md say: the mean final
loss then and now, by what share they differ, how many runs have the very same digits,
and of a tuning the rate then and now, and at how many rates all digits are the same.
Expect equal digits on as many cores of a like processor; elsewhere roundings differ,
and what is convolutional, learned, or far from converged shows it first.
"""

import pathlib

from absl import flags

import l2l_jax
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
from experiments.weights import RESULTS, read_weights

FLAGS = flags.FLAGS
common.define_tasks("Tasks; default: all.")
options.define_numbers("steps", None, "Steps of the runs; default: all.")
options.define_names(
    "optimizers",
    None,
    sorted(
        {
            entry.cell.optimizer
            for tables in (paper.EVIDENCE, horizons.EVIDENCE)
            for one in tables.values()
            for entry in one.entries
        }
    ),
    "Optimizers; default: all.",
)
options.define_directory(
    "stored", str(RESULTS / "paper" / "cells"), "Directory of the stored cells."
)
options.define_outdir("runs/repeat", "Directory of what is computed.")


def stored() -> list[repetition.Stored]:
    """The cells that the flags choose."""
    directory = pathlib.Path(l2l_jax.__file__).parent / "pretrained"
    lab = cells.Laboratory(
        pathlib.Path(FLAGS.stored),
        read_weights([], directory, trained=paper.TRAINED),
        FLAGS.data_dir,
        FLAGS.data_source,
        compute=False,
    )
    ours = read_weights([], directory, horizons.WEIGHTS, horizons.TRAINED)
    long = lab._replace(weights=horizons.with_variants(ours), long=horizons.FEWER)
    return repetition.stored(
        [(lab, paper.EVIDENCE), (long, horizons.EVIDENCE)],
        FLAGS.task,
        FLAGS.steps,
        FLAGS.optimizers,
    )


def main(argv: list[str]) -> None:
    """Chooses, computes, compares."""
    del argv
    chosen = stored()
    if not chosen:
        raise ValueError(
            f"{FLAGS.stored} has no cell of --task={FLAGS.task},"
            f" --steps={FLAGS.steps}, --optimizers={FLAGS.optimizers}"
        )
    tasks = [one.cell.task for one in chosen]
    task_table.check_data(tasks, FLAGS.data_dir, FLAGS.data_source)
    directory = pathlib.Path(FLAGS.outdir)
    print(f"{len(chosen)} cells, writing to {directory}", flush=True)
    rows = repetition.repeat(chosen, directory)
    print(report.table(rows, list(rows[0])))


if __name__ == "__main__":
    common.run(
        main,
        quick={"task": ["digits_mlp"], "steps": [100], "optimizers": ["longrun"]},
        stopped=cells.STOPPED,
    )
