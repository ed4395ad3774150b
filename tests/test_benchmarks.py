"""The benchmarks and comparisons, in small: their tables hold what they say."""

import csv
import json

import jax
import numpy as np
import pytest
from binaries import binary

from experiments import task_table
from experiments.networks import STRUCTURES, WIDE


def measured(out, name, *flags):
    """Benchmarks' numbers are for people; here only that they are there."""
    directory = out / name
    binary(name, *flags, f"--outdir={directory}")
    return json.loads(next(directory.glob("*.json")).read_text())


@pytest.mark.soak
def test_bench_step(tmp_path):
    result = measured(tmp_path, "bench_step", "--sizes=4000", "--repeats=1")
    rows = result["sizes"]["4000"]
    assert rows["adam"]["state_bytes_per_parameter"] == 8
    assert rows["rnnprop 2x20"]["state_bytes_per_parameter"] == 328
    assert rows["longrun"]["state_bytes_per_parameter"] == 16
    networks = [row for name, row in rows.items() if name not in ("adam", "longrun")]
    assert all(row["ratio_to_floor"] > 0 for row in networks)


@pytest.mark.soak
def test_bench_meta_training(tmp_path):
    flags = ["--hidden_sizes=2", "--input_size=2", "--repeats=1", "--num_devices=2"]
    assert measured(tmp_path, "bench_meta_training", *flags)["ratio_to_floor"] > 0


@pytest.mark.soak
def test_bench_convolution(tmp_path):
    flags = ["--ways=auto,xla", "--num_steps=2", "--quick"]
    result = measured(tmp_path, "bench_convolution", *flags)["seconds_a_step"]
    assert list(result) == ["c-c-p-f, mnist"]
    times = {way: row["median_s"] for way, row in result["c-c-p-f, mnist"].items()}
    assert list(times) == ["auto", "xla"]
    assert all(seconds > 0 for seconds in times.values())


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.soak
def test_bench_lazy(tmp_path):
    flags = ["--task=quadratic", "--num_steps=200", "--num_runs=2", "--every=4"]
    binary("bench_lazy", *flags, "--name=longrun", f"--outdir={tmp_path / 'out'}")
    rows = rows_of(tmp_path / "out" / "lazy.csv")
    evaluations = {row["asked"]: float(row["evaluations"]) for row in rows}
    assert evaluations["every step"] == 200
    assert evaluations["every 4"] == 50
    assert 50 < evaluations["every 4 on a plateau"] <= 200
    assert (tmp_path / "out" / "lazy.png").stat().st_size > 1000


@pytest.mark.soak
def test_bench_scaling(tmp_path):
    small = ["--num_iterations=2", "--num_seeds=2", "--num_runs=2", "--num_steps=20"]
    binary("bench_scaling", *small, f"--outdir={tmp_path / 'out'}")
    with (tmp_path / "out" / "scaling.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = {row["scaled"]: float(row["digits_mlp_relu, 20"]) for row in rows}
    assert len(set(losses.values())) == len(rows) == 7
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 1000


@pytest.mark.soak
def test_structures(tmp_path):
    flags = ["--quick", "--num_steps=5,20", "--structures=highway"]
    binary("structures", *flags, f"--outdir={tmp_path}")
    directory = tmp_path / "quick"
    with (directory / "structures.csv").open() as file:
        rows = {row["optimizer"]: row for row in csv.DictReader(file)}
    adam = rows["Adam, tuned"]
    assert len(rows) == 4
    assert [rows[name]["state bytes"] for name in rows] == [
        "8.0",
        "16.0",
        "328.0",
        "320.0",
    ]
    # When Adam has ended, Adam has done its last step, and the slow ones have not.
    for name, title in (("adam", "Adam, tuned"), ("rnnprop", "RNNprop")):
        cells = (directory / "cells").glob(f"*-20-{name}-*.json")
        curves = [json.loads(path.read_text())["curve"] for path in cells]
        last = next(curve for curve in curves if curve)["mean"][-1]
        reached = float(rows[title]["at Adam's end"])
        assert (abs(reached - last) < 1e-5) == (name == "adam")
    assert float(adam["loss, 20"]) < float(adam["loss, 5"])
    for picture in ("structures.png", "cost.png"):
        assert picture in (directory / "structures.md").read_text()
        assert (directory / picture).stat().st_size > 1000
    error = binary("structures", "--structures=tree", fails=True)
    assert "unknown tree; known are residual" in error


@pytest.mark.parametrize("name", STRUCTURES | WIDE)
def test_structures_start_as_flax_has_them(name):
    task = task_table.make_task(f"digits_{name}")
    key = jax.random.key(0)
    params = jax.jit(task.init)(key, ())
    biases = [
        value
        for path, value in jax.tree_util.tree_leaves_with_path(params)
        if "bias" in jax.tree_util.keystr(path)
    ]
    # Not N(0, .1) as the paper's networks have them.
    assert any(not np.any(bias) for bias in biases)
    module = task_table.make_module(f"digits_{name}")
    logits = module.apply({"params": params}, np.zeros((3, 8, 8, 1)))
    assert logits.shape == (3, 10)


@pytest.mark.soak
def test_bench_averaging(tmp_path):
    flags = ["--tasks=quadratic", "--num_iterations=2", "--optimizers=dm", "--units=1"]
    flags += ["--hidden_size=2", "--num_seeds=2", "--num_steps=20", "--num_runs=2"]
    binary("bench_averaging", *flags, f"--outdir={tmp_path / 'out'}")
    with (tmp_path / "out" / "averaging.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["without"]) > 0 < float(row["with"])
    assert (tmp_path / "out" / "averaging.png").stat().st_size > 1000


@pytest.mark.soak
def test_bench_ntm_bfgs(tmp_path):
    flags = ["--dims=3", "--num_iterations=1", "--num_seeds=2", "--meta_batch=1"]
    flags += ["--num_segments=1", "--num_steps=8", "--num_runs=2"]
    binary("bench_ntm_bfgs", *flags, f"--outdir={tmp_path / 'out'}")
    with (tmp_path / "out" / "ntm_bfgs.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {row["optimizer"]: float(row["step 8"]) for row in rows[: len(rows) // 2]}
    assert found["BFGS"] < found["learned without memory"]
    assert (tmp_path / "out" / "ntm_bfgs.png").stat().st_size > 1000


@pytest.mark.soak
def test_bench_estimators(tmp_path):
    flags = ["--task=quadratic", "--horizons=10", "--segment_length=5", "--updates=2"]
    flags += ["--rates=.01", "--num_seeds=2", "--num_runs=2", "--num_estimates=200"]
    binary("bench_estimators", *flags, f"--outdir={tmp_path / 'out'}")
    with (tmp_path / "out" / "bias_and_noise.csv").open() as file:
        bias = {(r["estimator"], r["truncations"]): r for r in csv.DictReader(file)}
    assert float(bias["BPTT, second order", "1"]["bias"]) < 1e-4
    for name in ("PES", "ES-Single", "score function"):
        assert float(bias[name, "16"]["bias"]) < 0.5
    for name in ("BPTT", "BPTT, second order", "ES"):
        assert float(bias[name, "16"]["bias"]) > 0.8
    with (tmp_path / "out" / "estimators.csv").open() as file:
        assert all(0 < float(r["final_ratio"]) < 2 for r in csv.DictReader(file))
    assert (tmp_path / "out" / "estimators.png").stat().st_size > 1000


@pytest.mark.soak
def test_bench_groups(tmp_path):
    flags = ["--start=fresh", "--hidden_sizes=2", "--num_iterations=2"]
    flags += [
        "--num_steps=20",
        "--num_seeds=2",
        "--num_runs=2",
        f"--outdir={tmp_path / 'out'}",
    ]
    binary("bench_groups", *flags)
    rows = rows_of(tmp_path / "out" / "groups.csv")
    weights = [int(row["weights"]) for row in rows[:2]]
    assert weights[1] == 2 * weights[0]
    losses = [float(row["held-out loss"]) for row in rows]
    np.testing.assert_allclose(losses[2], losses[1] - losses[0], atol=1e-6)
    assert (tmp_path / "out" / "groups.png").stat().st_size > 1000


@pytest.mark.soak
def test_bench_mutual(tmp_path):
    flags = ["--task=quadratic", "--num_iterations=4", "--num_seeds=2", "--num_runs=2"]
    binary("bench_mutual", *flags, "--rates=1e-3,1e-2", f"--outdir={tmp_path / 'out'}")
    rows = rows_of(tmp_path / "out" / "mutual.csv")
    assert len(rows) == 6
    for row in rows[1:]:
        tried = dict(pair.split(": ") for pair in row["tried"].split(", "))
        assert float(row["rate"]) == float(min(tried, key=lambda r: float(tried[r])))
    assert (tmp_path / "out" / "mutual.png").stat().st_size > 1000


@pytest.mark.soak
def test_bench_memory(tmp_path):
    result = measured(tmp_path, "bench_memory", "--sizes=8000", "--largest=0")
    rows = result["sizes"]["8000"]
    assert len(rows) == 3
    for row in rows.values():
        assert row["state_and_gradient_bytes"] == 8000 * (328 + 4) + 4
        assert not row["exchanges"]


@pytest.mark.soak
def test_bench_state_dtype(tmp_path):
    flags = ["--task=quadratic", "--num_steps=3", "--num_runs=1", "--names=rnnprop"]
    rows = measured(tmp_path, "bench_state_dtype", *flags)["rows"]
    assert [row["bytes a parameter"] for row in rows] == [328, 168, 328]
    assert rows[0]["distance"] == 0 < rows[1]["distance"]


@pytest.mark.soak
def test_bench_decay(tmp_path):
    flags = ["--task=digits_mlp", "--decays=0,.1", f"--cells={tmp_path / 'cells'}"]
    binary("bench_decay", *flags, "--quick", f"--outdir={tmp_path / 'out'}")
    rows = rows_of(tmp_path / "out" / "decay.csv")
    losses = [float(row["loss"]) for row in rows]
    assert len(set(losses)) == len(rows) == 4
    # A tenth a step is far too much for either.
    assert losses[0] < losses[1]
    assert losses[2] < losses[3]
    assert all(0 < float(row["accuracy"]) <= 1 for row in rows)
    assert (tmp_path / "out" / "decay.png").stat().st_size > 1000


@pytest.mark.soak
def test_bench_epsilon(tmp_path):
    flags = ["--task=digits_mlp", "--epsilons=1e-8,1e30", "--quick"]
    binary("bench_epsilon", *flags, f"--outdir={tmp_path / 'out'}")
    rows = rows_of(tmp_path / "out" / "epsilon.csv")
    assert [row["optimizer"] for row in rows] == 2 * ["Adam", "Longrun", "nominal rule"]
    adam, longrun, _, still, *_ = (float(row["mean"]) for row in rows)
    # Steps are g / (|g| + ε): with so large an ε nothing moves.
    assert max(adam, longrun) < still
    ratio = float(rows[0]["Longrun over this"])
    assert ratio == pytest.approx(longrun / adam)
    assert (tmp_path / "out" / "epsilon.png").stat().st_size > 1000


@pytest.mark.soak
def test_bench_stopping(tmp_path):
    run, out = f"--workdir={tmp_path / 'run'}", tmp_path / "out"
    small = ["--hidden_sizes=2", "--num_steps=20", "--num_iterations=4"]
    binary("meta_train", "--task=digits_mlp", *small, "--export_every=1", run)
    flags = ["--task=digits_mlp", "--every=2", "--num_steps=5", "--num_runs=2"]
    binary("bench_stopping", *flags, run, f"--outdir={out}")
    rows = rows_of(out / "stopping.csv")
    (selected,) = (r["iterations"] for r in rows if r["selected"] == "True")
    assert {r["iterations"] for r in rows} == {"2", "4", selected}
    assert len({r["digits_mlp"] for r in rows}) == len(rows)
    log = [float(row["train_loss"]) for row in rows_of(tmp_path / "run" / "log.csv")]
    assert float(rows[-1]["training loss"]) == pytest.approx(np.mean(log[2:]))
    # Steps of length 0 leave all where it was, whatever the weights.
    still = tmp_path / "still"
    zero = ["--hyper_parameters=step_size=0.", f"--outdir={still}"]
    binary("bench_stopping", *flags, run, *zero)
    assert len({r["digits_mlp"] for r in rows_of(still / "stopping.csv")}) == 1
    # The last weights have the losses that `evaluate` finds for them.
    last = f"--weights=last={tmp_path / 'run' / 'weights' / '00000004.npz'}"
    to = tmp_path / "evaluated"
    binary("evaluate", *flags[:1], *flags[2:], "--baselines=", last, f"--outdir={to}")
    (row,) = rows_of(to / "table.csv")
    assert float(row["mean"]) == pytest.approx(float(rows[-1]["digits_mlp"]))
