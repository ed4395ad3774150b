"""Runs are repeatable to the bit, whatever happens to them on the way."""

import math
import os
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
from toy_runs import (
    CrashError,
    assert_identical,
    contents,
    crash_after,
    raise_signals,
    toy,
)

from l2l_jax import checkpoint, runs


def test_straight(straight):
    state, directory = straight
    found = contents(directory)
    log = found["log"]
    assert list(log) == ["iteration", "skipped", "train_loss", "total_skipped"]
    assert log["iteration"] == list(range(40)) == list(found["events"])
    assert log["skipped"] == [int(i % 9 == 4) for i in range(40)]
    assert log["total_skipped"] == np.cumsum(log["skipped"]).tolist()
    assert found["checkpoint"] == 40
    assert sorted(found["files"]) == [
        *("00000015.npz", "00000030.npz", "00000040.npz", "validation.csv")
    ]
    with np.load(directory / "weights" / "00000040.npz") as weights:
        assert weights["w"].tobytes() == np.asarray(state.params["w"]).tobytes()

    # The log holds the very numbers that the step gave.
    again, losses = toy.initial_state(), []
    for i in range(40):
        again, metrics = toy.step(again, i)
        losses.append(float(metrics["train_loss"]))
    assert_identical(again, state)
    assert log["train_loss"] == losses
    events = [found["events"][i]["train_loss"] for i in range(40)]
    assert events == np.asarray(losses, np.float32).tolist()


def test_config_is_complete(straight):
    described = runs.read_config(straight[1])
    assert described["config"] == {"learning_rate": 0.05}
    assert described["num_iterations"] == 40
    assert described["environment"]["jax"] == jax.__version__
    assert described["environment"]["backend"] == jax.default_backend()
    assert {"python", "l2l_jax", "jaxlib", "flax", "optax", "numpy", "device_kind"} <= (
        described["environment"].keys()
    )


@pytest.mark.parametrize("iterations", [(3,), (10,), (17, 24, 39), (15, 14), (40,)])
def test_killed_and_resumed(tmp_path, straight, iterations):
    """Killed before the first checkpoint, with one due, thrice, and at the end."""
    state, directory = straight
    for i, iteration in enumerate(iterations):
        with pytest.raises(CrashError):
            toy.toy_run(tmp_path, 40, resume=i > 0, progress=crash_after(iteration))
    assert_identical(toy.toy_run(tmp_path, 40, resume=True), state)
    assert contents(tmp_path) == contents(directory)


def half_a_row(run):
    with (run / "log.csv").open("a") as log:
        log.write("27,1,0.25")


def half_a_number(run):
    log = run / "log.csv"
    log.write_bytes(log.read_bytes()[:-3])


def later_files(run):
    weights = run / "weights"
    for iteration in (29, 30):  # 29: from a run that was to export there
        (weights / f"{iteration:08d}.npz").write_bytes(b"later")
        runs.record_validation(run, iteration, 0.0)
    (weights / "00000030.tmp.npz").write_bytes(b"unfinished")
    for name in ("log.csv.tmp", "config.json.tmp", "tensorboard/rebuilt.tmp"):
        (run / name).write_text("unfinished")


def unfinished_checkpoint(run):
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "20", checkpoints / "30.orbax-checkpoint-tmp")


def half_deleted_checkpoint(run):
    shutil.rmtree(run / "checkpoints" / "10" / "data")


def no_events(run):
    shutil.rmtree(run / "tensorboard")


def garbage_events(run):
    (path,) = (run / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-5] + b"garbage")


def everything_after_the_checkpoint_lost(run):
    log = run / "log.csv"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:21]))


@pytest.mark.parametrize(
    "edit",
    [
        half_a_row,
        half_a_number,
        later_files,
        unfinished_checkpoint,
        half_deleted_checkpoint,
        no_events,
        garbage_events,
        everything_after_the_checkpoint_lost,
    ],
)
def test_killed_between_two_writes(tmp_path, straight, edit):
    state, directory = straight
    with pytest.raises(CrashError):
        toy.toy_run(tmp_path, 40, progress=crash_after(27))
    assert checkpoint.iterations(tmp_path) == (10, 20)
    edit(tmp_path)
    assert_identical(toy.toy_run(tmp_path, 40, resume=True), state)
    assert contents(tmp_path) == contents(directory)


@pytest.mark.parametrize("keep", [(), ("checkpoints",)])
def test_killed_at_the_very_beginning(tmp_path, straight, keep):
    """After config.json was written, and after checkpoint 0 was."""
    with pytest.raises(CrashError):
        toy.toy_run(tmp_path, 40, progress=crash_after(1))
    for path in tmp_path.iterdir():
        if path.name not in ("config.json", *keep):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_identical(toy.toy_run(tmp_path, 40, resume=True), straight[0])
    assert contents(tmp_path) == contents(straight[1])


@pytest.mark.soak
def test_killed_before_every_change_of_a_file(tmp_path, monkeypatch):
    """The n-th call that syncs, renames, makes or removes a file does not happen."""
    calls = dict.fromkeys(["fsync", "replace", "rename", "mkdir", "unlink", "rmdir"])
    countdown = [math.inf]

    def counted(call):
        def wrapper(*arguments, **options):
            countdown[0] -= 1
            if countdown[0] < 0:
                raise CrashError
            return call(*arguments, **options)

        return wrapper

    for name in calls:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def go(directory, **options):
        options |= {"checkpoint_every": 2, "export_every": 3}
        return toy.toy_run(directory, 9, **options)

    state, n, crashed = go(tmp_path / "straight"), 0, True
    while crashed:
        directory, crashed = tmp_path / str(n), False
        countdown[0] = n
        try:
            go(directory)
        except (CrashError, OSError):  # Orbax wraps what goes wrong in a checkpoint
            crashed = True
        countdown[0] = math.inf
        resume = (directory / "config.json").exists()
        assert_identical(go(directory, resume=resume), state)
        assert contents(directory) == contents(tmp_path / "straight"), n
        n += 1
    assert n > 50


def test_finished_run_is_returned_at_once(straight):
    state, directory = straight
    before = contents(directory)
    again = toy.toy_run(directory, 40, resume=True, step=None, export=None)
    assert_identical(again, state)
    assert contents(directory) == before


def test_finished_run_may_grow(tmp_path, straight):
    state, directory = straight
    toy.toy_run(tmp_path, 23)
    assert_identical(toy.toy_run(tmp_path, 40, resume=True), state)
    assert runs.read_log(tmp_path)["iteration"].tolist() == list(range(40))
    (tmp_path / "weights" / "00000023.npz").unlink()  # its end at the time
    names = [path.name for path in (directory / "weights").iterdir()]
    assert [path.name for path in (tmp_path / "weights").iterdir()] == names


def test_checkpoint_seconds(tmp_path):
    with pytest.raises(CrashError):
        toy.toy_run(tmp_path, 9, checkpoint_seconds=1e-9, progress=crash_after(4))
    assert checkpoint.iterations(tmp_path) == (2, 3)


@pytest.mark.parametrize("name", ["tensorboard", "weights"])
def test_unwritable_folder(tmp_path, straight, name):
    with pytest.raises(CrashError):
        toy.toy_run(tmp_path, 40, progress=crash_after(12))
    shutil.rmtree(tmp_path / name, ignore_errors=True)
    (tmp_path / name).write_text("a file in its place")
    with pytest.raises(OSError, match=str(tmp_path / name)):
        toy.toy_run(tmp_path, 40, resume=True)
    (tmp_path / name).unlink()
    assert_identical(toy.toy_run(tmp_path, 40, resume=True), straight[0])


def export_much(state, path, iteration):
    np.savez(path, noise=np.random.default_rng(0).normal(size=20_000))


# NumPy 2.0 leaves an archive open that it could not write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("limit", "options", "name"),
    [
        (1_500, {}, "log.csv"),
        (5_000, {}, "events.out.tfevents"),  # it is buffered, so later
        (50_000, {"export": export_much}, "00000015.tmp.npz"),
    ],
)
def test_full_disk(tmp_path, limit, options, name):
    """The kernel refuses to let a file grow, as on a full disk; then there is room."""
    options = {
        "checkpoint_every": 1000,
        "on_export": None,
        "export_every": 15,
    } | options
    progress = raise_signals(3, signal.SIGTERM)
    with pytest.raises(runs.Interrupted):
        toy.toy_run(tmp_path, 200, progress=progress, **options)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: .*{tmp_path}.*{name}"):
            toy.toy_run(tmp_path, 200, resume=True, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.iterations(tmp_path) == (0, 3)
    toy.toy_run(tmp_path, 200, resume=True, **options)
    assert runs.read_log(tmp_path)["iteration"].tolist() == list(range(200))
