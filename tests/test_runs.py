"""Runs are repeatable to the bit, whatever happens to them on the way."""

import importlib.util
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from l2l_jax import checkpoint, runs

PROGRAM = Path(__file__).parent / "programs" / "toy_run.py"
spec = importlib.util.spec_from_file_location("toy_run", PROGRAM)
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)


class CrashError(Exception):
    """Stands for a kill: the process does nothing more."""


def crash_after(iteration):
    def progress(done, *_):
        if done == iteration:
            raise CrashError

    return progress


def read_events(directory):
    """The scalars of the one event file, {iteration: {tag: value}}, checked."""
    (path,) = (directory / "tensorboard").iterdir()
    data, scalars = path.read_bytes(), {}
    while data:
        (length,), (crc,) = struct.unpack("Q", data[:8]), struct.unpack("I", data[8:12])
        assert crc == masked_crc32c(data[:8])
        body, data = data[12 : 12 + length], data[16 + length :]
        event = event_pb2.Event.FromString(body)
        if event.HasField("summary"):
            assert event.step not in scalars
            scalars[event.step] = {v.tag: v.simple_value for v in event.summary.value}
    return scalars


def contents(directory):
    """All that a run leaves on the disk, but for the times that it took."""
    log = runs.read_log(directory)
    events = read_events(directory)
    for iteration, seconds in enumerate(log.pop("seconds")):
        assert events[iteration].pop("seconds") == np.float32(seconds)
    config = json.loads((directory / "config.json").read_text())
    files = [*directory.glob("weights/*"), directory / "validation.csv"]
    return {
        "log": {name: column.tolist() for name, column in log.items()},
        "events": events,
        "files": {path.name: path.read_bytes() for path in files},
        "checkpoint": checkpoint.iterations(directory)[-1],
        "config": (config["config"], config["num_iterations"], config["environment"]),
        "names": sorted(path.name for path in directory.iterdir()),
    }


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The state and the directory of an uninterrupted run of 40 iterations."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    return toy.toy_run(directory, 40), directory


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


def start(directory, *arguments):
    """Starts the program and waits until it begins its run."""
    process = subprocess.Popen(
        [sys.executable, PROGRAM, directory, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(runs.__file__).parents[1]),
            "JAX_ENABLE_X64": str(jax.config.jax_enable_x64),
        },
    )
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def wait_for_rows(process, directory, rows):
    log = directory / "log.csv"
    while not log.exists() or log.read_bytes().count(b"\n") <= rows:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def test_sigkill(tmp_path, straight):
    state, directory = straight
    process = start(tmp_path, 40, "--pause", 0.01)
    wait_for_rows(process, tmp_path, 13)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(runs.read_log(tmp_path)["iteration"]) < 40
    assert_identical(toy.toy_run(tmp_path, 40, resume=True), state)
    assert contents(tmp_path) == contents(directory)


@pytest.mark.soak
def test_sigkill_again_and_again(tmp_path):
    state = toy.toy_run(tmp_path / "straight", 3000)
    rng, kills, run = random.Random(0), 0, tmp_path / "run"
    while kills < 20:
        resume = ["--resume"] if (run / "config.json").exists() else []
        process = start(run, 3000, *resume)
        time.sleep(rng.uniform(0, 2.5))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
    assert_identical(toy.toy_run(run, 3000, resume=True), state)
    assert contents(run) == contents(tmp_path / "straight")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_resume(tmp_path, straight, signum):
    state, directory = straight
    process = start(tmp_path, 40, "--pause", 0.05)
    wait_for_rows(process, tmp_path, 3)
    process.send_signal(signum)
    _, errors = process.communicate()
    assert process.returncode == 1
    done = len(runs.read_log(tmp_path)["iteration"])
    assert errors == (
        f"{signum.name}: stopped after {done} of 40 iterations; all is saved in "
        f"{tmp_path}. To resume: add --resume\n"
    )
    assert 3 <= done < 40
    assert checkpoint.iterations(tmp_path)[-1] == done
    assert_identical(toy.toy_run(tmp_path, 40, resume=True), state)
    assert contents(tmp_path) == contents(directory)


def raise_signals(iteration, *signums):
    def progress(done, *_):
        if done == iteration:
            for signum in signums:
                os.kill(os.getpid(), signum)

    return progress


def test_second_signal_acts_as_usual(tmp_path):
    progress = raise_signals(3, signal.SIGTERM, signal.SIGINT)
    # A shell that starts the tests in the background has SIGINT ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            toy.toy_run(tmp_path, 40, progress=progress)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert checkpoint.iterations(tmp_path) == (0,)


@pytest.mark.parametrize("iteration", [3, 40])
def test_handlers_are_given_back(tmp_path, iteration):
    def handlers():
        return [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    before = handlers()
    with pytest.raises(runs.Interrupted, match="SIGTERM") as error:
        toy.toy_run(tmp_path, 40, progress=raise_signals(iteration, signal.SIGTERM))
    assert (error.value.iteration, error.value.signum) == (iteration, signal.SIGTERM)
    assert handlers() == before
    toy.toy_run(tmp_path, 40, resume=True)
    assert handlers() == before


def test_thread_leaves_signals_alone(tmp_path, straight):
    before, during, states = signal.getsignal(signal.SIGINT), set(), []

    def work():
        state = toy.toy_run(
            tmp_path,
            40,
            progress=lambda *_: during.add(signal.getsignal(signal.SIGINT)),
        )
        states.append(state)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == {before}
    assert_identical(states[0], straight[0])


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "log.csv",
        "checkpoints",
        "weights",
        "validation.csv",
        "tensorboard",
    ],
)
def test_never_overwrites(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match=f"holds a run .{name}.*: say please"):
        toy.toy_run(tmp_path, 1, how_to_resume="say please")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent holds no run \(no config"):
        toy.toy_run(tmp_path / "absent", 1, resume=True)
    assert not (tmp_path / "absent").exists()


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


def test_checkpoints_gone(stopped):
    """Nothing of a run is deleted for the want of its checkpoints."""
    shutil.rmtree(stopped / "checkpoints")
    log, config = (stopped / "log.csv").read_text(), runs.read_config(stopped)["config"]
    with pytest.raises(FileNotFoundError, match="checkpoints holds no checkpoint"):
        toy.toy_run(stopped, 6, config=config, resume=True)
    assert (stopped / "log.csv").read_text() == log


def test_finished_run_is_returned_at_once(straight):
    state, directory = straight
    before = contents(directory)
    again = toy.toy_run(directory, 40, resume=True, step=None, export=None)
    assert_identical(again, state)
    assert contents(directory) == before


def test_one_process_at_a_time(tmp_path):
    def progress(*_):
        with pytest.raises(RuntimeError, match=f"another process .*{tmp_path}"):
            toy.toy_run(tmp_path, 2, resume=True)

    toy.toy_run(tmp_path, 2, progress=progress)


def test_config_is_complete(straight):
    described = runs.read_config(straight[1])
    assert described["config"] == {"learning_rate": 0.05}
    assert described["num_iterations"] == 40
    assert described["environment"]["jax"] == jax.__version__
    assert described["environment"]["backend"] == jax.default_backend()
    assert {"python", "l2l_jax", "jaxlib", "flax", "optax", "numpy", "device_kind"} <= (
        described["environment"].keys()
    )


@pytest.fixture
def stopped(tmp_path):
    """The directory of a run of 6 iterations that was interrupted after 3."""
    config = {"a": 1, "layers": (2, 3), "old": None, "num_iterations": 6}
    with pytest.raises(runs.Interrupted):
        toy.toy_run(
            tmp_path, 6, config=config, progress=raise_signals(3, signal.SIGTERM)
        )
    return tmp_path


@pytest.mark.parametrize(
    ("config", "num_iterations", "message"),
    [
        (
            {"a": 2, "old": None},
            6,
            r"json: a: was 1, is 2; layers: was \[2, 3\], is 'a",
        ),
        ({"a": 1, "layers": [2, 3]}, 6, "json: old: was None, is 'absent'$"),
        ({"a": 1, "layers": [2, 3], "old": None, "x": 0}, 6, "x: was 'absent', is 0$"),
        ({"a": 1, "layers": [2, 3], "old": None}, 5, "may only grow.: was 6, is 5$"),
    ],
)
def test_other_config_is_refused(stopped, config, num_iterations, message):
    with pytest.raises(ValueError, match=message):
        toy.toy_run(stopped, num_iterations, config=config, resume=True)


def test_what_may_change(stopped):
    config = {"a": 2, "layers": [2, 3], "old": None, "num_iterations": 8}
    toy.toy_run(stopped, 8, config=config, resume=True, may_change={"a", "b"})
    assert len(runs.read_log(stopped)["iteration"]) == 8
    described = runs.read_config(stopped)
    assert (described["config"], described["num_iterations"]) == (config, 8)
    assert described["resumed"] == [
        {"iteration": 3, "changed": {"a": [1, 2], "num_iterations": [6, 8]}}
    ]


def test_finished_run_may_grow(tmp_path, straight):
    state, directory = straight
    toy.toy_run(tmp_path, 23)
    assert_identical(toy.toy_run(tmp_path, 40, resume=True), state)
    assert runs.read_log(tmp_path)["iteration"].tolist() == list(range(40))
    (tmp_path / "weights" / "00000023.npz").unlink()  # its end at the time
    names = [path.name for path in (directory / "weights").iterdir()]
    assert [path.name for path in (tmp_path / "weights").iterdir()] == names


def test_other_versions_are_noted(stopped):
    path = stopped / "config.json"
    described = json.loads(path.read_text())
    described["environment"]["jax"] = "0.1"
    path.write_text(json.dumps(described))
    with pytest.warns(UserWarning, match=f"jax: was '0.1', is '{jax.__version__}'"):
        toy.toy_run(stopped, 6, config=described["config"], resume=True)
    changed = runs.read_config(stopped)["resumed"][0]["changed"]
    assert changed == {"jax": ["0.1", jax.__version__]}


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {}}'])
def test_damaged_config(stopped, text):
    (stopped / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is no description of a run"):
        toy.toy_run(stopped, 6, resume=True)


def bad_steps(*ranges):
    """A step whose gradients are not finite in these iterations."""

    def step(state, iteration):
        bad = any(begin <= iteration < end for begin, end in ranges)
        return state + 1, {"loss": math.nan if bad else 1.0, "skipped": 3 * bad}

    return step


def bad_run(directory, step, **options):
    defaults = {"max_bad": 5, "checkpoint_every": 2, "state": jnp.int32(0)}
    defaults |= {"export": None, "on_export": None, "step": step}
    return toy.toy_run(directory, 20, **defaults | options)


def test_bad_iterations_stop_the_run(tmp_path):
    step = bad_steps((1, 5), (7, 12))
    with pytest.raises(RuntimeError) as error:
        bad_run(tmp_path, step, how_to_resume="go on")
    message = str(error.value)
    assert "stopped after iteration 11" in message
    assert "in the 5 iterations from 7 on" in message
    assert str(tmp_path / "log.csv") in message
    assert f"Last good checkpoint: {tmp_path / 'checkpoints' / '6'} " in message
    assert message.endswith("go on)")
    # No checkpoint while they lasted: 2 and 4 were put off till 6.
    assert checkpoint.iterations(tmp_path) == (0, 6)
    assert runs.read_log(tmp_path)["total_skipped"].tolist() == (
        [0, 3, 6, 9, 12, 12, 12, 15, 18, 21, 24, 27]
    )
    assert bad_run(tmp_path, bad_steps(), resume=True) == 20
    assert runs.read_log(tmp_path)["total_skipped"][-1] == 12


def test_bad_from_the_start(tmp_path):
    with pytest.raises(RuntimeError, match=r"iteration 4: .*checkpoints/0 "):
        bad_run(tmp_path, bad_steps((0, 20)))
    assert checkpoint.iterations(tmp_path) == (0,)


def test_bad_iterations_are_counted_across_resumption(tmp_path):
    """Interrupted twice among them: saved, but the last good checkpoint stays."""
    step = bad_steps((6, 20))
    for i, interruption in enumerate((8, 9)):
        progress = raise_signals(interruption, signal.SIGTERM)
        with pytest.raises(runs.Interrupted):
            bad_run(tmp_path, step, resume=i > 0, progress=progress)
    assert checkpoint.iterations(tmp_path) == (6, 8, 9)
    with pytest.raises(RuntimeError, match=r"iteration 10: .*checkpoints/6 "):
        bad_run(tmp_path, step, resume=True)


def test_few_bad_iterations_at_the_end(tmp_path):
    assert bad_run(tmp_path, bad_steps((17, 20))) == 20
    assert checkpoint.iterations(tmp_path) == (16, 20)


def test_checkpoint_seconds(tmp_path):
    with pytest.raises(CrashError):
        toy.toy_run(tmp_path, 9, checkpoint_seconds=1e-9, progress=crash_after(4))
    assert checkpoint.iterations(tmp_path) == (2, 3)


def test_log_is_exact(tmp_path):
    values = [0.1, math.nan, -math.inf, 5e-324, 1e300]
    singles = jnp.asarray([0.1, math.nan, -math.inf, 1e-45, 3e38], jnp.float32)

    def step(state, i):
        metrics = {"double": values[i], "single": singles[i], "flag": i > 2}
        return state, metrics | {"half": jnp.bfloat16(0.1), "count": np.int64(i)}

    run = {"step": step, "state": (), "skipped": None, "export": None}
    toy.toy_run(tmp_path, 5, **run)
    log = runs.read_log(tmp_path)
    np.testing.assert_array_equal(log["double"], values)
    np.testing.assert_array_equal(log["single"], np.asarray(singles))
    np.testing.assert_array_equal(log["half"], [float(jnp.bfloat16(0.1))] * 5)
    assert log["flag"].tolist() == [0, 0, 0, 1, 1]
    assert [log[n].dtype for n in ("iteration", "count", "flag")] == [np.int64] * 3
    assert log["seconds"].dtype == np.float64
    assert "total_skipped" not in log
    with (tmp_path / "log.csv").open("a") as file:
        file.write("5,0.25")
    assert runs.read_log(tmp_path)["iteration"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n1,", "\n1,1,", "damaged: 6 instead of 5 columns in line 3"),
        ("\n1,0,", "\n1,x,", "damaged: could not convert string to float: 'x'"),
        ("\n1,", "\n2,", "damaged: it does not hold the iterations 0 to 2"),
    ],
)
def test_damaged_log(stopped, old, new, message):
    log = stopped / "log.csv"
    log.write_text(log.read_text().replace(old, new, 1))
    config = runs.read_config(stopped)["config"]
    with pytest.raises(ValueError, match=f"log.csv is {message}"):
        toy.toy_run(stopped, 6, config=config, resume=True)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (lambda s, i: (s, {"a": 1}), ValueError, "'skipped' is None, must be an int"),
        (lambda s, i: (s, {"skipped": 0.5}), ValueError, "'skipped' is 0.5"),
        (lambda s, i: (s, {"skipped": -1}), ValueError, "'skipped' is -1"),
        (
            lambda s, i: (s, {"skipped": 0, f"a{i}": 1}),
            ValueError,
            "other metrics.*: a1, skipped;",
        ),
        (lambda s, i: (s, {"skipped": np.zeros(2)}), ValueError, "real scalar"),
        (lambda s, i: (s, {"skipped": "no"}), ValueError, "skipped is 'no'"),
        (lambda s, i: (s, {"skipped": 0, "seconds": 0}), ValueError, "something else"),
        (
            lambda s, i: (s, {"skipped": 0, "a,b": 0}),
            ValueError,
            "'a,b' must be called",
        ),
        (lambda s, i: ((s, s), {"skipped": 0}), TypeError, "structure: was"),
        (
            lambda s, i: (s[:2], {"skipped": 0}),
            TypeError,
            r"float32\[3\], is float32\[2",
        ),
        (lambda s, i: (s.astype("int32"), {"skipped": 0}), TypeError, r"is int32\[3\]"),
    ],
)
def test_step_that_breaks_its_contract(tmp_path, step, error, message):
    with pytest.raises(error, match=message):
        toy.toy_run(tmp_path, 3, step=step, state=jnp.zeros(3, "float32"), export=None)


def test_weak_types_are_stripped(tmp_path):
    """A checkpoint could not keep them, and promotion would differ on resuming."""
    seen = []

    def step(state, i):
        seen.append(state.weak_type)
        return state * 2, {"skipped": 0}

    run = {"step": step, "state": jnp.asarray(1.0), "export": None}
    assert toy.toy_run(tmp_path, 3, **run) == 8
    assert seen == [False] * 3


@pytest.mark.parametrize(
    "argument",
    [
        {"num_iterations": 0},
        {"export_every": 0},
        {"checkpoint_every": -1},
        {"checkpoint_seconds": 0.0},
        {"max_bad": 0},
        {"config": {"rate": math.nan}},
        {"config": {"path": Path("x")}},
        {"config": {"num_iterations": 2}},
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, argument):
    (name,) = argument
    with pytest.raises(ValueError, match=name):
        toy.toy_run(tmp_path / "run", **{"num_iterations": 1} | argument)
    assert not (tmp_path / "run").exists()


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=str(directory)):
            toy.toy_run(directory, 3)


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


@pytest.mark.parametrize(
    ("limit", "options", "name"),
    [
        (2_000, {}, "log.csv"),
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


def test_export_that_writes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"00000002\.tmp\.npz"):
        toy.toy_run(tmp_path, 2, export=lambda *_: None)


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


def test_progress_bar(tmp_path, capfd):
    with runs.progress_bar("train_loss", mininterval=0) as progress:
        toy.toy_run(tmp_path, 3, progress=progress)
    text = capfd.readouterr().err
    for part in ("1/3 [", "3/3 [", "train_loss="):
        assert part in text
