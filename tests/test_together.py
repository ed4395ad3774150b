"""Runs whose iterations are one call: each is what it would be alone."""

import signal

import jax
import numpy as np
import optax
import pytest
from binaries import binary
from toy_runs import (
    CrashError,
    assert_identical,
    contents,
    crash_after,
    raise_signals,
    toy,
)

from l2l_jax import (
    checkpoint,
    convex_task,
    learned_optimizer,
    load,
    meta_trainer,
    runs,
)

SEEDS = (1, 2, 3)


def steps(states, iteration):
    return zip(*(toy.step(state, iteration) for state in states), strict=True)


def own(folder, seed):
    state = toy.initial_state()._replace(key=jax.random.key(seed))
    return toy.of_run(folder / f"seed{seed}") | {"state": state}


def together(folder, progress=None, of=2, **options):
    of_each = [own(folder, seed) for seed in SEEDS]
    if progress:
        of_each[of - 1]["progress"] = progress
    return runs.run_together(of_each, steps, 40, **toy.OFTEN, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return [toy.toy_run(num_iterations=40, **own(folder, s)) for s in SEEDS], folder


def assert_as_alone(states, folder, alone):
    for seed, state, other in zip(SEEDS, states, alone[0], strict=True):
        assert_identical(state, other)
        name = f"seed{seed}"
        assert contents(folder / name) == contents(alone[1] / name)


def test_each_is_as_alone(tmp_path, alone):
    assert_as_alone(together(tmp_path), tmp_path, alone)
    losses = {
        tuple(runs.read_log(tmp_path / f"seed{seed}")["train_loss"]) for seed in SEEDS
    }
    assert len(losses) == len(SEEDS)
    # All done: nothing is computed.
    of_each = [own(tmp_path, seed) for seed in SEEDS]
    again = runs.run_together(of_each, None, 40, **toy.OFTEN, resume=True)
    assert_as_alone(again, tmp_path, alone)


def test_those_behind_catch_up(tmp_path, alone):
    """Killed after one has saved and before the next; one went on by itself."""
    with pytest.raises(CrashError):
        together(tmp_path, crash_after(20), of=2)
    alone_again = own(tmp_path, 3) | {"progress": crash_after(33)}
    with pytest.raises(CrashError):
        toy.toy_run(num_iterations=40, resume=True, **alone_again)
    at = [checkpoint.iterations(tmp_path / f"seed{seed}")[-1] for seed in SEEDS]
    assert at == [20, 10, 30]
    assert_as_alone(together(tmp_path, resume=True), tmp_path, alone)


@pytest.mark.parametrize("of", [1, 2, 3])
def test_a_signal_stops_all_and_all_is_saved(tmp_path, alone, of):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(runs.Interrupted, match="SIGTERM: stopped after"):
        together(tmp_path, raise_signals(13, signal.SIGTERM), of=of)
    assert signal.getsignal(signal.SIGTERM) == before
    for seed in SEEDS:
        folder = tmp_path / f"seed{seed}"
        done = len(runs.read_log(folder)["iteration"])
        assert checkpoint.iterations(folder)[-1] == done
        assert done in (13, 14)
    assert_as_alone(together(tmp_path, resume=True), tmp_path, alone)


def test_an_error_in_one_leaves_all_to_be_resumed(tmp_path, alone):
    def wrong(states, iteration):
        after, metrics = steps(states, iteration)
        if iteration == 25:
            metrics = metrics[0], {"train_loss": np.zeros(2), "skipped": 0}, metrics[2]
        return after, metrics

    of_each = [own(tmp_path, seed) for seed in SEEDS]
    with pytest.raises(ValueError, match="metric train_loss"):
        runs.run_together(of_each, wrong, 40, **toy.OFTEN)
    assert_as_alone(together(tmp_path, resume=True), tmp_path, alone)


@pytest.mark.parametrize("num_segments", [2, np.array([1, 3])])
def test_trainings_in_one_program_are_as_alone(num_segments):
    options = {
        "task": convex_task(4),
        "optimizer": learned_optimizer("rnnprop", {"hidden_sizes": (3,)}),
        "outer": optax.adam(1e-2),
        "segment_length": 3,
    }
    both, one = meta_trainer(**options, meta_seeds=2), meta_trainer(**options)
    start, episode = (jax.random.split(jax.random.key(i), 2) for i in (0, 1))
    states, metrics = both.iterate(both.init(start), episode, num_segments)
    for i, number in enumerate(np.broadcast_to(num_segments, 2)):
        expected = one.iterate(one.init(start[i]), episode[i], int(number))
        found = jax.tree.map(lambda x, i=i: x[i], (states, metrics))
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_meta_seeds_is_a_number():
    with pytest.raises(ValueError, match="meta_seeds must be a positive int, got 0"):
        meta_trainer(
            convex_task(4),
            learned_optimizer("rnnprop"),
            optax.adam(1e-2),
            meta_seeds=0,
        )


def test_meta_train_with_seeds(tmp_path):
    """As each by itself; each goes on by itself; a further one catches up."""
    flags = ["--task=convex", "--hidden_sizes=3", "--num_steps=6", "--segment_length=3"]
    flags += ["--optimizer=dm", "--export_every=1", "--select=validation"]
    many = [*flags, f"--workdir={tmp_path}"]
    text = binary("meta_train", *many, "--meta_seeds=4,0", "--num_iterations=2")
    assert all(f"{tmp_path}/seed{seed}/weights/" in text for seed in (4, 0))
    longer = [*flags, "--seed=4", "--num_iterations=3"]
    binary("meta_train", *longer, f"--workdir={tmp_path}/alone")
    resumed = [f"--workdir={tmp_path}/seed4", "--resume", "--num_devices=2"]
    binary("meta_train", *longer, *resumed)
    (change,) = runs.read_config(tmp_path / "seed4")["resumed"]
    assert change["changed"]["num_devices"] == [1, 2]
    resumed = ["--meta_seeds=4,0,5", "--num_iterations=3", "--resume"]
    binary("meta_train", *many, *resumed)
    logs = [runs.read_log(tmp_path / name) for name in ("alone", "seed4")]
    for name in ("train_loss", "gradient_norm", "update_norm"):
        np.testing.assert_allclose(*(log[name] for log in logs), rtol=1e-4)
    scores = [runs.read_validation(tmp_path / name) for name in ("alone", "seed4")]
    np.testing.assert_allclose(*(score["loss"] for score in scores), rtol=1e-4)
    for seed in (4, 0, 5):
        folder = tmp_path / f"seed{seed}"
        assert runs.read_log(folder)["iteration"].tolist() == [0, 1, 2]
        assert load(folder / "weights" / "00000003.npz").training["seed"] == seed

    twice = binary("meta_train", *many, "--meta_seeds=1,1", fails=True)
    assert "--meta_seeds must differ, got 1,1" in twice
    both = binary("meta_train", *many, "--meta_seeds=1", "--seed=1", fails=True)
    assert "--seed and --meta_seeds exclude each other" in both
    there = binary("meta_train", *many, "--meta_seeds=0", fails=True)
    assert "holds a run" in there
