"""Which of a run's saved weights to take, from what is on the disk."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2l_jax.evaluate import Evaluation
from l2l_jax.files import write_text
from l2l_jax.records import columns, read_csv, read_log

_WEIGHTS = re.compile(r"(\d{8,})\.npz")


def weights_files(directory: Path) -> dict[int, Path]:
    """The finished weights files by iteration."""
    return {
        int(match[1]): path
        for path in (directory / "weights").glob("*.npz")
        if (match := _WEIGHTS.fullmatch(path.name))
    }


def read_scores(directory: str | Path) -> dict[int, float]:
    if not (Path(directory) / "validation.csv").exists():
        return {}
    table = read_validation(directory)
    return dict(zip(table["iteration"].tolist(), table["loss"].tolist(), strict=True))


def write_scores(directory: str | Path, scores: dict[int, float]) -> None:
    lines = [f"{iteration},{loss!r}\n" for iteration, loss in sorted(scores.items())]
    write_text(
        Path(directory) / "validation.csv", "".join(["iteration,loss\n", *lines])
    )


def validation_score(results: Sequence[Evaluation]) -> float:
    """What weights are worth, by runs of validation tasks: the less the better.

    Args:
      results: of each task, at least one.

    Returns:
      The mean final loss; of several tasks the mean of its logarithm; infinity if a
      run's is not finite: the others shall not win for it.

    Example:
      >>> losses = np.array([0.5, 0.3])
      >>> validation_score([Evaluation(losses, losses[:, None], ())])
      0.4
    """
    summaries = [result.summary() for result in results]
    if any(summary["not_finite"] for summary in summaries):
        return math.inf
    losses = [summary["mean"] for summary in summaries]
    return losses[0] if len(losses) == 1 else float(np.mean(np.log(losses)))


def record_validation(directory: str | Path, iteration: int, loss: float) -> None:
    """Writes the score of a weights file to validation.csv.

    Args:
      directory: the directory of the run.
      iteration: the number in the name of the weights file. A score that it has
        already is replaced.
      loss: its validation loss, a scalar.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     record_validation(directory, 1000, 0.5)
      ...     record_validation(directory, 2000, 0.25)
      ...     read_validation(directory)["loss"].tolist()
      [0.5, 0.25]
    """
    write_scores(directory, read_scores(directory) | {int(iteration): float(loss)})


def read_validation(directory: str | Path) -> dict[str, np.ndarray]:
    """Reads validation.csv.

    Args:
      directory: the directory of a run.

    Returns:
      `iteration` (int64) and `loss` (float64), each of shape (scores,), by iteration.

    Raises:
      FileNotFoundError: if no score was recorded.
      ValueError: if the file is damaged.

    Example: see `record_validation`.
    """
    path = Path(directory) / "validation.csv"
    return columns(path, *read_csv(path))


def moving_average(losses: Any, *, block: int = 100, decay: float = 0.9) -> np.ndarray:
    """Averages a loss per block of iterations, and the blocks exponentially.

    a_1 = l_1 and a_i = decay·a_(i-1) + (1 - decay)·l_i, where l_i is the mean of the
    i-th block. A last, incomplete block counts as a block. A loss that is not finite
    is left out of the mean (nothing was learned from it); a block of nothing else has
    the mean inf, as then have all averages from there on.

    Args:
      losses: shape (iterations,).
      block: iterations in a block, >= 1.
      decay: between 0 and 1, exclusive.

    Returns:
      The averages at the ends of the blocks, float64 of shape
      (ceil(iterations / block),).

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> moving_average([3.0, 1.0, 4.0, 2.0, 12.0], block=2, decay=0.5).tolist()
      [2.0, 2.5, 7.25]

    Source: Lv, Jiang and Li (2017), "the lowest moving average of the training loss of
    the past 1,000 iterations with decay factor 0.9", read as a decay of .9 per block of
    100 iterations: a block ten blocks ago has a third of the weight.
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 1 or block < 1 or not 0 < decay < 1:
        raise ValueError(
            f"losses of shape {losses.shape}, block={block}, decay={decay}; must be "
            "of one dimension, >= 1, and between 0 and 1"
        )
    averages: list[float] = []
    for begin in range(0, losses.size, block):
        part = losses[begin : begin + block]
        part = part[np.isfinite(part)]
        mean = part.mean() if part.size else np.inf
        averages.append(decay * averages[-1] + (1 - decay) * mean if averages else mean)
    return np.asarray(averages, np.float64)


def select(
    directory: str | Path, *, by: str = "training", metric: str = "train_loss"
) -> Path:
    """Picks the best weights file of a run from what is on the disk.

    Args:
      directory: the directory of a run, which may be running.
      by: "training": the file at whose iteration the `moving_average` of all losses
        up to then is lowest. "validation": the one of the lowest loss in
        validation.csv (files without a score are left out).
      metric: the column of log.csv that is the training loss.

    Returns:
      The path of the file; the earliest one of equals.

    Raises:
      FileNotFoundError: if there is no log or no weights file.
      ValueError: if `by` or `metric` is unknown, or no file has a finite score.

    Example:
      `select("runs/rnnprop")` gives, say, `runs/rnnprop/weights/00019000.npz`.

    Source: Lv, Jiang and Li (2017); training for RNNprop, validation for DMoptimizer.
    """
    directory = Path(directory)
    files = weights_files(directory)
    if not files:
        raise FileNotFoundError(f"{directory / 'weights'} holds no weights file")
    if by == "training":
        log = read_log(directory)
        if metric not in log:
            raise ValueError(
                f"{directory / 'log.csv'} has no column {metric!r}; it has "
                f"{', '.join(log)}"
            )
        losses = log[metric]
        scores = {
            iteration: moving_average(losses[:iteration])[-1]
            for iteration in files
            if iteration <= losses.size
        }
    elif by == "validation":
        scores = read_scores(directory)
    else:
        raise ValueError(f'by is {by!r}, must be "training" or "validation"')
    scores = {
        i: scores[i] for i in sorted(files) if math.isfinite(scores.get(i, np.nan))
    }
    if not scores:
        raise ValueError(f"no file of {directory / 'weights'} has a finite score")
    return files[min(scores, key=scores.__getitem__)]
