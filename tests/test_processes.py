"""Several processes train together as one, keep one run, and end together."""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from l2l_jax import load, runs

ROOT = pathlib.Path(__file__).parents[1]
META_TRAIN = [
    *("-m", "experiments.meta_train"),
    *("--task=quadratic", "--optimizer=dm", "--hidden_sizes=2", "--select=training"),
    *("--num_steps=6", "--segment_length=3", "--meta_batch=2"),
    *("--meta_learning_rate=.01", "--heartbeat_seconds=10"),
]
PATIENCE = 200  # seconds, for a machine that has much else to do


@pytest.fixture
def start():
    """Starts a Python program; those that are left are killed in the end."""
    started = []

    def start(*arguments):
        command, pipe = [sys.executable, *map(str, arguments)], subprocess.PIPE
        started.append(
            subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def start_two(start, tmp_path):
    """Starts both processes of a run; the second one is told another directory."""

    def start_two(directory, *flags):
        address = free_address()
        return [
            start(
                *META_TRAIN,
                f"--coordinator_address={address}",
                "--num_processes=2",
                f"--process_id={i}",
                f"--workdir={tmp_path / name}",
                *flags,
            )
            for i, name in enumerate([directory, "never"])
        ]

    yield start_two
    assert not (tmp_path / "never").exists()


def free_address():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return f"localhost:{s.getsockname()[1]}"


def end(process):
    """Exit status, stdout and stderr."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def wait_for(log, rows, *processes):
    """Returns when the log has so many rows."""
    while not log.exists() or log.read_bytes().count(b"\n") <= rows:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def test_what_two_processes_agree_on(start):
    """Bits of process 0, typed keys, and that what differs is refused in both."""
    program, address = ROOT / "tests" / "programs" / "agree.py", free_address()
    (code, out, err), other = map(end, [start(program, address, i) for i in range(2)])
    assert code == other[0] == 0, err + other[2]
    lines, others = ([*text.splitlines()[-4:]] for text in (out, other[1]))
    assert lines == others
    state = np.array([-0.0, np.nan, 1], np.float32).tobytes().hex()
    assert lines[0] == f"5 {state} True"
    assert lines[1] == "[0 0] 4"
    assert lines[2] == str(jax.random.normal(jax.random.key(0), 2))
    assert lines[3].startswith("the number must be the same in all processes, but")


def test_two_processes_train_like_two_devices(start, start_two, tmp_path):
    flags = ["--num_iterations=5", "--export_every=5"]
    two = start_two("two", *flags)
    one = start(*META_TRAIN, "--num_devices=2", f"--workdir={tmp_path / 'one'}", *flags)
    (code, out, err), (other_code, other_out, other_err), last = map(end, [*two, one])
    assert (code, other_code, last[0]) == (0, 0, 0), err + other_err + last[2]
    assert "selected: " in out
    # It prints nothing itself; newer releases of jaxlib do.
    assert all(line.startswith("[Gloo]") for line in other_out.splitlines())
    expected, found = (runs.read_log(tmp_path / name) for name in ("one", "two"))
    assert found["iteration"].tolist() == list(range(5))
    np.testing.assert_allclose(found["train_loss"], expected["train_loss"], rtol=1e-5)
    a, b = (
        load(tmp_path / name / "weights" / "00000005.npz").params
        for name in ("one", "two")
    )
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    config = runs.read_config(tmp_path / "two")
    assert config["environment"]["processes"] == 2
    assert config["config"]["num_devices"] == 2


@pytest.mark.soak
def test_one_dies_all_end_and_the_resumed_run_ends_in_the_same_bits(
    start_two, tmp_path
):
    """Killed and frozen, the second and the first; interrupted by one signal."""
    flags = ["--num_iterations=600", "--export_every=600", "--checkpoint_minutes=.002"]
    flags += ["--select=validation"]  # process 0 works while the other waits
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for process in start_two("straight", *flags):
        code, _, err = end(process)
        assert code == 0, err

    log = killed / "log.csv"
    blows = [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)]
    for i, (victim, blow) in enumerate(blows):
        two = start_two("killed", *flags, f"--resume={i > 0}")
        wait_for(log, 60 * (i + 1), *two)
        two[victim].send_signal(blow)
        code, _, err = end(two[1 - victim])
        assert code not in (0, -blow), err
        two[victim].kill()
        end(two[victim])

    two = start_two("killed", *flags, "--resume")
    wait_for(log, 300, *two)
    two[1].send_signal(signal.SIGTERM)
    for process in two:
        code, _, err = end(process)
        assert code == 1
        assert "SIGTERM: stopped after" in err
        assert "Traceback" not in err

    for process in start_two("killed", *flags, "--resume"):
        code, _, err = end(process)
        assert code == 0, err
    found, expected = runs.read_log(killed), runs.read_log(straight)
    assert found["iteration"].tolist() == list(range(600))
    np.testing.assert_array_equal(found["train_loss"], expected["train_loss"])
    weights = pathlib.Path("weights") / "00000600.npz"
    a, b = (load(directory / weights).params for directory in (straight, killed))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--num_processes=2"], "without --coordinator_address and --process_id"),
        (["--num_devices=2", "--second_order", "--meta_batch=3"], "must divide"),
    ],
)
def test_what_does_not_fit_is_refused(start, tmp_path, flags, text):
    code, _, err = end(start(*META_TRAIN, *flags, f"--workdir={tmp_path / 'run'}"))
    assert code == 1
    assert text in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
