r"""Compares Longrun with optimizers tuned for each task and horizon.

    python -m experiments.long_horizon --all --data_dir=DIR \
        --cells=runs/paper/cells

Writes the tables "unknown" (no optimizer knows the horizon, but a constant rate is
tuned for it), "given" (Adam and AdamW with a cosine schedule over it), "validation",
"ablation", "seeds", "wide" (networks wider than the papers'), "stress", the figure
"long", and verdicts.md: where Longrun is below the best of its opponents, level (within
2 standard errors of the paired difference) or above, and how far a long run of it ends
above its own lowest. On convolutional networks Longrun and its nominal rule have one
cell, since nothing that was learned is used there. 100 runs each of 100 steps, 20 of
more, 5 of convolutional networks on a CPU. Cells are stored as by
`experiments.reproduce`, so that the same command goes on where it was stopped.

All is estimated at a day on 2 idle cores; --table=validation at half an hour; --quick
is a look in minutes.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import cells, common, horizons, paper, report, reproduce
from experiments.weights import read_weights

FLAGS = flags.FLAGS  # those of `reproduce`
FLAGS.set_default("outdir", "runs/long_horizon")

TITLE = "Longrun against the best of each group"
RISES = "Where long runs end above their own lowest"
SAME = "the same: nothing that was learned is used"
TWENTIETH = 20


def verdicts(found: Mapping[paper.Cell, cells.Result]) -> list[dict[str, Any]]:
    """For each task and horizon: Longrun against the best of each group."""
    groups = {
        "constant rates": horizons.TRADITIONAL,
        "known horizon": horizons.SCHEDULED,
        "nominal rule": horizons.NOMINAL,
    }

    def loss(result):
        return np.nan_to_num(result.final, nan=np.inf).mean()

    def against(ours, cell, names):
        others = {
            name: horizons.cell(cell.task, cell.steps, optimizer)
            for optimizer, name in names.items()
        }
        if cell in others.values():
            return SAME
        there = {name: found.get(other) for name, other in others.items()}
        if None in there.values():
            return None
        best = min(there, key=lambda name: loss(there[name]))
        ratio, error, word = report.compare(ours.final, there[best].final)
        return f"{word}: {ratio:.3f} ± {error:.3f} of {best}"

    return [
        {
            "test": f"{cell.task}, {cell.steps:,}",
            "Longrun": ours.statistics["mean"],
            **{group: against(ours, cell, names) for group, names in groups.items()},
        }
        for cell, ours in found.items()
        if cell.optimizer == "longrun"
    ]


def rise(curve: np.ndarray) -> float:
    """The mean of a curve's last twentieth over that of its lowest one; 1 at best.

    The lowest of all windows of this length, so that the noise of a minibatch is none.
    """
    length = max(len(curve) // TWENTIETH, 1)
    means = np.convolve(curve, np.full(length, 1 / length), "valid")
    return float(means[-1] / means.min())


def rises(found: Mapping[paper.Cell, cells.Result]) -> list[dict[str, Any]]:
    """For each long run of Longrun, at each of its rates: where it ends."""
    names = {**horizons.OURS, **horizons.RATES}
    return [
        {
            "test": f"{cell.task}, {cell.steps:,}",
            "optimizer": names[cell.optimizer],
            "diverged": result.statistics["diverged"],
            "last twentieth over the lowest": rise(result.curve["mean"]),
        }
        for cell, result in found.items()
        if cell.optimizer in names and cell.steps >= horizons.FEWER
    ]


def main(argv: list[str]) -> None:
    """Computes, writes, counts."""
    del argv
    wanted = dict(horizons.EVIDENCE)
    if not FLAGS.all:
        wanted = reproduce.chosen(FLAGS.table, FLAGS.figure, wanted)
    directory = pathlib.Path(FLAGS.outdir) / ("quick" if FLAGS.quick else "")
    weights = read_weights(
        FLAGS.weights, FLAGS.weights_dir, horizons.WEIGHTS, horizons.TRAINED
    )
    lab = reproduce.laboratory(
        directory, horizons.with_variants(weights), horizons.FEWER
    )
    print(f"writing to {directory}, on {jax.devices()[0].device_kind}")
    lacking = reproduce.reproduce(lab, wanted, directory)
    peek, most = lab._replace(compute=False), reproduce.QUICK_STEPS
    found = {}
    tables = horizons.EVIDENCE.values()
    if FLAGS.quick:
        tables = [paper.shortened(one, most) for one in tables]
    for cell in paper.cells_of(tables):
        if result := cells.outcome(peek, cell).result:
            found[cell] = result
    if rows := verdicts(found):
        page = f"# {TITLE}\n\n{report.table(rows, list(rows[0]))}\n"
        if ends := rises(found):
            page += f"\n# {RISES}\n\n{report.table(ends, list(ends[0]))}\n"
        report.write(directory / "verdicts.md", lambda file: file.write_text(page))
        print(page)
    if lacking:
        print("\nmissing:", *lacking, sep="\n  ")


if __name__ == "__main__":
    common.run(main, stopped=cells.STOPPED)
