"""What a run describes, records, counts and refuses."""

import json
import math
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import raise_signals, toy

from l2l_jax import checkpoint, runs


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


def test_checkpoints_gone(stopped):
    """Nothing of a run is deleted for the want of its checkpoints."""
    shutil.rmtree(stopped / "checkpoints")
    log, config = (stopped / "log.csv").read_text(), runs.read_config(stopped)["config"]
    with pytest.raises(FileNotFoundError, match="checkpoints holds no checkpoint"):
        toy.toy_run(stopped, 6, config=config, resume=True)
    assert (stopped / "log.csv").read_text() == log


def test_one_process_at_a_time(tmp_path):
    def progress(*_):
        with pytest.raises(RuntimeError, match=f"another process .*{tmp_path}"):
            toy.toy_run(tmp_path, 2, resume=True)

    toy.toy_run(tmp_path, 2, progress=progress)


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


def test_other_versions_are_noted(stopped):
    path = stopped / "config.json"
    described = json.loads(path.read_text())
    described["environment"]["jax"] = "0.1"
    path.write_text(json.dumps(described))
    with pytest.warns(UserWarning, match=f"jax: was '0.1', is '{jax.__version__}'") as (
        record
    ):
        toy.toy_run(stopped, 6, config=described["config"], resume=True)
    assert record[0].filename == toy.__file__  # where `run` was called
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


def test_export_that_writes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"00000002\.tmp\.npz"):
        toy.toy_run(tmp_path, 2, export=lambda *_: None)


def test_progress_bar(tmp_path, capfd):
    with runs.progress_bar("train_loss", mininterval=0) as progress:
        toy.toy_run(tmp_path, 3, progress=progress)
    text = capfd.readouterr().err
    for part in ("1/3 [", "3/3 [", "train_loss="):
        assert part in text
