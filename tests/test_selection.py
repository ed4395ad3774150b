"""The weights file that a run selects, by training loss or by validation."""

import math

import numpy as np
import pytest

from l2l_jax import Evaluation, runs


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], []),
        ([4.0], [4.0]),
        ([1.0, 3.0, 6.0, 6.0], [2.0, 2.4]),
        ([1.0, 3.0, 12.0], [2.0, 3.0]),  # an incomplete block counts as one
        ([1.0, math.nan, math.inf, 11.0], [1.0, 2.0]),
        ([1.0, 1.0, math.nan, math.inf, 1.0], [1.0, math.inf, math.inf]),
    ],
)
def test_moving_average(losses, expected):
    averages = runs.moving_average(losses, block=2, decay=0.9)
    np.testing.assert_allclose(averages, expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("losses", "block", "decay"),
    [(np.zeros((2, 2)), 1, 0.9), ([1.0], 0, 0.9), ([1.0], 1, 1.0), ([1.0], 1, 0.0)],
)
def test_moving_average_refuses(losses, block, decay):
    with pytest.raises(ValueError, match="must be of one dimension"):
        runs.moving_average(losses, block=block, decay=decay)


def write_run(directory, losses, files, validation=()):
    rows = [f"{i},{loss!r},0.5" for i, loss in enumerate(losses)]
    text = "\n".join(["iteration,train_loss,seconds", *rows, ""])
    (directory / "log.csv").write_text(text)
    (directory / "weights").mkdir()
    for name in files:
        (directory / "weights" / name).touch()
    for iteration, loss in validation:
        runs.record_validation(directory, iteration, loss)


def blocks(*means):
    """A loss per iteration, which swings about these means of blocks of 100."""
    return [mean + (-1) ** i for mean in means for i in range(100)]


@pytest.mark.parametrize(
    ("losses", "files", "expected"),
    [
        # Averages at the ends of the blocks: 9, 8.2, 7.48, 8.73.
        (blocks(9, 1, 1, 20), (100, 200, 300, 400), 300),
        # A file between two blocks: (9, 8.2, 7.38 + .1 * 2) at 250 with swing 0.
        (blocks(9, 1, 2, 40), (100, 200, 250, 400), 250),
        (blocks(2, 2), (100, 200), 100),  # the earliest of equals
        ([3.0] * 50, (20, 50), 20),  # shorter than a block
        (blocks(math.nan, 1), (100, 200), None),
        (blocks(2, 1), (200, 300), 200),  # the log ends before 300
    ],
)
def test_select_by_training(tmp_path, losses, files, expected):
    write_run(tmp_path, losses, [f"{i:08d}.npz" for i in files])
    if expected is None:
        with pytest.raises(
            ValueError, match=r"no file of .*weights has a finite score"
        ):
            runs.select(tmp_path)
    else:
        assert runs.select(tmp_path) == tmp_path / "weights" / f"{expected:08d}.npz"


def test_select_by_validation(tmp_path):
    files = ["00000100.npz", "00000200.npz", "00000300.npz", "00000400.npz"]
    unfinished = ["00000050.tmp.npz", "best.npz"]
    scores = [(50, 0.0), (300, 0.2), (200, 0.2), (100, math.nan), (300, 0.3)]
    write_run(tmp_path, blocks(3, 2, 1, 0), files + unfinished, scores)
    assert runs.read_validation(tmp_path)["iteration"].tolist() == [50, 100, 200, 300]
    assert runs.select(tmp_path, by="validation").name == "00000200.npz"
    assert runs.select(tmp_path).name == "00000400.npz"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"by": "luck"}, ValueError, "by is 'luck'"),
        (
            {"metric": "loss"},
            ValueError,
            "no column 'loss'; it has iteration, train_lo",
        ),
        ({"by": "validation"}, ValueError, "no file of .*weights has a finite score"),
    ],
)
def test_select_refuses(tmp_path, arguments, error, message):
    with pytest.raises(FileNotFoundError, match="holds no weights file"):
        runs.select(tmp_path)
    write_run(tmp_path, [1.0], ["00000001.npz"])
    with pytest.raises(error, match=message):
        runs.select(tmp_path, **arguments)


def test_a_lost_run_is_not_outweighed_by_others():
    def result(*final):
        return Evaluation(np.array(final), np.ones((len(final), 1)), ())

    assert runs.validation_score([result(0.5, 0.3)]) == 0.4
    both = runs.validation_score([result(0.5, 0.3), result(0.1, 0.1)])
    assert both == pytest.approx(math.log(0.4 * 0.1) / 2)
    assert runs.validation_score([result(0.5, math.nan)]) == math.inf
    assert runs.validation_score([result(0.5, 0.3), result(0.1, math.inf)]) == math.inf
