"""A run that a signal ends is saved; one that is killed is repeated to the bit."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from toy_runs import PROGRAM, assert_identical, contents, raise_signals, toy

from l2l_jax import checkpoint, runs


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
