"""The binaries, run as a user runs them."""

import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from binaries import ROOT, binary, command

from experiments import watch, weights
from l2l_jax import load, load_pretrained, runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two iterations, stopped after one and resumed with more frequent exports."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--task=quadratic", "--hidden_sizes=3", f"--workdir={directory}"]
    cache = directory.parent / "cache"
    flags.append(f"--compilation_cache={cache}")
    binary("meta_train", *flags, "--num_iterations=1")
    more = ["--num_iterations=2", "--export_every=1", "--resume"]
    text = binary("meta_train", *flags, *more)
    assert "selected: " in text
    assert any(cache.iterdir())
    return directory, flags


def test_tasks_are_listed():
    lines = [line.strip() for line in binary("meta_train", "--list_tasks").splitlines()]
    tests = lines[1 : lines.index("other tasks:")]
    assert len(tests) == len(set(tests)) == 22
    assert "--task=mnist_mlp --num_steps=10000" in tests
    assert "--task=digits_mlp" in lines


def test_publish(trained, tmp_path):
    flags = [f"--workdir={trained[0]}", "--name=mine", f"--outdir={tmp_path}"]
    binary("publish", *flags)
    assert load(tmp_path / "mine.npz").training["iterations"] == 2
    card = (tmp_path / "mine.md").read_text()
    assert "2 of 2 done, selected by training loss" in card
    assert len((tmp_path / "mine.csv").read_text().splitlines()) == 3
    (command,) = re.findall("`python -m experiments.(.*)`", card)
    binary(*command.split(), "--only_check_args")
    assert "--overwrite" in binary("publish", *flags, fails=True)


def test_card_of_a_run_on_several_devices(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    described = json.loads((run / "config.json").read_text())
    described["environment"]["backend"] = "tpu"
    described["resumed"] = [
        {"iteration": 1, "changed": {"num_devices": [1, 2]}},
        {"iteration": 1, "changed": {"backend": ["cpu", "gpu"]}},
        {"iteration": 2, "changed": {"backend": ["gpu", "tpu"]}},
    ]
    (run / "config.json").write_text(json.dumps(described))
    binary("publish", f"--workdir={run}", "--name=mine", f"--outdir={tmp_path}")
    card = (tmp_path / "mine.md").read_text()
    assert "hours (cpu then gpu, " in card  # the third came after these weights


def test_meta_train_leaves_a_whole_run(trained):
    directory, flags = trained
    log = runs.read_log(directory)
    assert log["iteration"].tolist() == [0, 1]
    assert np.isfinite(log["train_loss"]).all()
    learned = load(directory / "weights" / "00000002.npz")
    assert learned.params.lstm[0].bias.shape == (12,)
    assert learned.training["iterations"] == 2
    message = binary("meta_train", *flags, fails=True)
    assert "holds a run" in message
    assert "Traceback" not in message
    (resumed,) = runs.read_config(directory)["resumed"]
    assert resumed["changed"]["export_every"] == [1000, 1]


def assert_same_weights(file, other):
    a, b = (jax.tree.leaves(load(path).params) for path in (file, other))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.soak
def test_killed_meta_training_ends_in_the_same_bits(tmp_path):
    """One SIGKILL; `test_signals` has one of a smaller program."""
    flags = ["--task=quadratic", "--hidden_sizes=3", "--num_iterations=200"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    binary("meta_train", *flags, f"--workdir={straight}", "--export_every=200")
    flags += [f"--workdir={killed}", "--export_every=200", "--checkpoint_minutes=.002"]
    process = subprocess.Popen(command("meta_train", *flags), cwd=ROOT)
    log = killed / "log.csv"
    while not log.exists() or log.read_bytes().count(b"\n") < 20:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(runs.read_log(killed)["iteration"]) < 200
    binary("meta_train", *flags, "--resume")
    assert runs.read_log(killed)["iteration"].tolist() == list(range(200))
    weights = pathlib.Path("weights") / "00000200.npz"
    assert_same_weights(straight / weights, killed / weights)


def wait_for_an_iteration(process, log):
    """Until the log was taken back to the checkpoint, as another file, and grew."""
    before = log.stat().st_ino if log.exists() else None
    size = math.inf
    while not log.exists() or log.stat().st_size <= size:
        assert process.poll() is None
        if size == math.inf and log.exists() and log.stat().st_ino != before:
            size = log.stat().st_size
        time.sleep(0.001)


@pytest.mark.soak
def test_meta_training_killed_again_and_again(tmp_path):
    """SIGKILL at 20 random moments: of a run's beginning and of its iterations."""
    flags = ["--task=quadratic", "--hidden_sizes=3", "--num_iterations=20000"]
    flags += ["--num_steps=20", "--export_every=1000"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    binary("meta_train", *flags, f"--workdir={straight}")
    flags.append("--checkpoint_minutes=.002")
    rng, log, trained = random.Random(0), killed / "log.csv", 0
    for kill in range(20):
        resume = ["--resume"] if (killed / "config.json").exists() else []
        process = subprocess.Popen(
            command("meta_train", *flags, f"--workdir={killed}", *resume), cwd=ROOT
        )
        if kill % 4:
            wait_for_an_iteration(process, log)
            time.sleep(rng.uniform(0, 2))
            trained += 1
        else:
            time.sleep(rng.uniform(0, 10))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it came to its end: more iterations"
    done = len(runs.read_log(killed)["iteration"])
    print(f"20 kills, {trained} while it trained; {done} of 20,000 iterations by then")
    assert 0 < done < 20_000
    binary("meta_train", *flags, f"--workdir={killed}", "--resume")
    a, b = runs.read_log(straight), runs.read_log(killed)
    for name in a.keys() - {"seconds"}:
        np.testing.assert_array_equal(a[name], b[name])
    files, others = (sorted(p.glob("weights/*")) for p in (straight, killed))
    assert [p.name for p in files] == [p.name for p in others]
    assert len(files) == 20
    for file, other in zip(files, others, strict=True):
        assert_same_weights(file, other)


def train_dm(directory, *flags):
    text = binary(
        "meta_train",
        "--optimizer=dm",
        "--hidden_sizes=3",
        "--num_iterations=4",
        "--export_every=1",
        f"--workdir={directory}",
        *flags,
    )
    scores = runs.read_validation(directory)
    assert scores["iteration"].tolist() == [1, 2, 3, 4]
    best = scores["iteration"][np.argmin(scores["loss"])]
    assert f"selected: {directory}/weights/{best:08}.npz" in text
    images = list((directory / "tensorboard" / "validation").iterdir())
    assert len(images) == 4
    assert min(image.stat().st_size for image in images) > 5_000
    return scores["loss"]


@pytest.mark.soak
def test_longrun_on_two_tasks(tmp_path):
    """Episodes of several lengths, evolution strategies, weights by validation.

    A hyper-parameter of the rule's own goes where the weights go.
    """
    flags = ["--optimizer=longrun", "--task=quadratic,convex", "--num_iterations=2"]
    flags += ["--evolution=.03", "--meta_batch=2", "--loss_weights=last"]
    flags += ["--segment_length=3,1", "--min_steps=3", "--num_steps=6,4"]
    flags += ["--select=validation", "--meta_accumulate=1"]
    flags += ["--hyper_parameters=pace=0.2,largest=null"]
    binary("meta_train", *flags, f"--workdir={tmp_path}", "--export_every=1")
    log = runs.read_log(tmp_path)
    assert np.isfinite(log["train_loss"]).all()
    assert runs.read_validation(tmp_path)["iteration"].tolist() == [1, 2]
    learned = load(tmp_path / "weights" / "00000002.npz")
    assert learned.training["task"] == "quadratic,convex"
    assert learned.training["num_steps"] == [6, 4]
    assert learned.config == {"pace": 0.2, "largest": None}
    assert np.any(learned.params.factor != 0)
    message = binary("meta_train", "--task=mnist_mlp,other", "--workdir=x", fails=True)
    assert "digits_mlp" in message
    flags = ["--task=quadratic,convex", "--num_steps=20,40,60", "--workdir=x"]
    message = binary("meta_train", *flags, fails=True)
    assert "--num_steps must be one number or one for each of the 2 tasks" in message
    flags = ["--task=quadratic", "--hyper_parameters=speed=1", "--workdir=x"]
    message = binary("meta_train", *flags, fails=True)
    assert "hyper-parameter of rnnprop" in message
    assert "step_size" in message
    flags[1] = "--hyper_parameters=step_size=long"
    message = binary("meta_train", *flags, fails=True)
    assert message.startswith("error: --hyper_parameters: step_size must be a number")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--estimator=bptt", "--second_order"], {"estimator": "bptt"}),
        (["--estimator=score_function", "--particles=3"], {"sigma": 0.1}),
        (["--estimator=single_perturbation", "--sigma=.2"], {"sigma": 0.2}),
        (["--evolution=.2", "--particles=4"], {"evolution": 0.2, "particles": 4}),
    ],
)
def test_training_by_another_estimator(tmp_path, flags, expected):
    """Instead of the one that is Longrun's default."""
    flags = [*flags, "--optimizer=longrun", "--task=quadratic", "--num_iterations=1"]
    flags += ["--segment_length=3", "--num_steps=6", "--loss_weights=mean"]
    binary("meta_train", *flags, "--meta_accumulate=1", f"--workdir={tmp_path}")
    learned = load(tmp_path / "weights" / "00000001.npz")
    assert np.any(learned.params.factor != 0)
    assert expected.items() <= learned.training.items()
    assert ("evolution" in learned.training) == ("evolution" in expected)


@pytest.mark.soak
def test_selection_by_validation(tmp_path):
    # A rate so high that the best is not the last.
    losses = train_dm(tmp_path / "run", "--task=quadratic", "--meta_learning_rate=3")
    assert np.argmin(losses) < 3


@pytest.mark.soak
def test_validation_on_real_mnist(tmp_path):
    directory = os.environ.get("L2L_DATA_DIR")
    if not directory:
        pytest.skip("L2L_DATA_DIR names no directory of the real data")
    flags = ["--task=mnist_mlp", f"--data_dir={directory}", "--num_steps=20"]
    losses = train_dm(tmp_path / "run", *flags)
    np.testing.assert_allclose(losses, np.log(10), atol=0.5)  # hardly trained


def test_tune_and_evaluate(trained, tmp_path):
    shared = ["--task=quadratic", "--num_steps=10", "--num_runs=3"]
    tuned, compared = tmp_path / "tuned", tmp_path / "compared"
    found = ["--optimizers=adam,sgd", f"--outdir={tuned}"]
    text = binary("tune_baselines", *shared, *found)
    assert text.count("| task") == 1
    rate = json.loads((tuned / "tuned.json").read_text())["optimizers"]["adam"]["rate"]
    assert 0.01 < rate < 1
    assert (tuned / "tuned.png").stat().st_size > 1000
    text = binary(
        "evaluate",
        *shared,
        f"--weights=ours={trained[0]}",
        f"--tuned={tuned}/tuned.json",
        f"--outdir={compared}",
    )
    assert "| ours " in text
    result = json.loads((compared / "table.json").read_text())
    for name in ("ours", "adam"):
        values = result["final_losses"][name]
        row = next(r for r in result["table"] if r["optimizer"] == name)
        np.testing.assert_allclose(np.mean(values), row["mean"])
        assert row["runs"] == len(values) == 3
    assert (compared / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (compared / "table.csv").read_text().count("\n") == 3


@pytest.mark.soak
def test_quickstart(tmp_path):
    (tmp_path / "out").mkdir()  # taken, and so left alone
    text = binary("quickstart", "--quick", f"--outdir={tmp_path / 'out'}")
    out = tmp_path / "out-2"
    assert f"writing to {out}" in text
    rows = json.loads((out / "table.json").read_text())
    assert {row["optimizer"] for row in rows} >= {"rnnprop", "adam", "momentum"}
    assert all(row["runs"] == 2 and row["mean"] > 0 for row in rows)
    assert load(out / "rnnprop.npz").kind == "rnnprop"


def test_weights_are_named_as_users_name_them(trained, tmp_path):
    directory = trained[0]
    assert weights.selected(directory) == directory / "weights" / "00000002.npz"
    found = weights.read_all([str(directory), "ours=rnnprop", "dm"], ["adam"])
    assert list(found) == ["run", "ours", "dm"]
    assert found["ours"].training == load_pretrained("rnnprop").training
    assert found["run"].training["iterations"] == 2
    for entries, text in (
        (["nothing"], "'nothing' are no file.*longrun"),
        (["a=rnnprop", "a=dm"], "a=dm.*taken"),
        (["adam=rnnprop"], "taken"),
    ):
        with pytest.raises(ValueError, match=text):
            weights.read_all(entries, ["adam"])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        weights.read(str(tmp_path))


def test_watch(trained, tmp_path):
    directory, _ = trained
    text = binary("watch", f"--workdir={directory}")
    assert "2 of 2 iterations, finished" in text
    assert "rnnprop, quadratic" in text
    losses = runs.read_log(directory)["train_loss"]
    assert f"{losses.mean():.4g}" in text
    assert "holds no run" in binary("watch", f"--workdir={tmp_path}", fails=True)


def test_watch_tells_a_run_that_is_silent(trained, tmp_path):
    longer = tmp_path / "run"
    shutil.copytree(trained[0], longer)
    described = json.loads((longer / "config.json").read_text())
    described["num_iterations"] = 5
    (longer / "config.json").write_text(json.dumps(described))
    runs.record_validation(longer, 2, 0.25)
    written = (longer / "log.csv").stat().st_mtime
    found = watch.summary(longer, written + 1)
    assert (found["state"], found["done"], found["of"]) == ("running", 2, 5)
    assert found["left"] == 3 * found["speed"]
    assert found["scores"] == [(2, 0.25)]
    later = watch.summary(longer, written + 1e6)
    assert later["state"].startswith("silent for 11 days")
    # A row that is being written is not there yet.
    with (longer / "log.csv").open("a") as log:
        log.write("2,0.")
    assert watch.summary(longer, written)["done"] == 2


def test_bars():
    assert watch.bars([3.0] * 7, 5) == watch.BARS[0] * 5
    assert watch.bars([np.nan, 1.0, -1.0], 9) == " █▁"
    assert watch.bars([], 9) == ""
