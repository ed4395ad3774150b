"""Flags, errors and ends of the binaries: the same habits everywhere."""

import importlib
import io
import json
import logging
import re
import subprocess
import sys

import pytest
import tqdm
from absl import flags
from binaries import ROOT, binary, command

from experiments import common, options, report


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("--sizes=2,30", [2, 30]),
        ("--sizes=2,abc", "--sizes=2,abc: 'abc' is not an integer of at least 1"),
        ("--sizes=2.5", "integer"),
        ("--sizes=-5", "at least 1"),
        ("--sizes=", "joined by commas"),
        ("--losses=last", "last"),
        ("--losses=0,.5", [0.0, 0.5]),
        ("--losses=first", "'first' is not a finite number.*'last'"),
        ("--losses=inf", "finite"),
        ("--rate=1e-3", 1e-3),
        ("--rate=nan", "--rate=nan: 'nan' is not a finite number of at least 0"),
        ("--rate=-1", "at least 0"),
        ("--names=a, c", ["a", "c"]),
        ("--names=a,d", "unknown d; known are a, b, c"),
        ("--names=", "known are a, b, c"),
        ("--maybe=", []),
        ("--set=a=0.5, b=null,c=bfloat16", {"a": 0.5, "b": None, "c": "bfloat16"}),
        ("--set=a=.08,b=1.,c=1", {"a": 0.08, "b": 1.0, "c": 1}),
        ("--set=a", "'a' is not NAME=VALUE"),
    ],
)
def test_values_of_flags(monkeypatch, words, value):
    found = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", found)
    options.define_numbers("sizes", [20, 20], "")
    options.define_numbers("losses", None, "", float, None, ["last"])
    options.define_float("rate", 0.5, "", 0)
    options.define_names("names", ["a", "b"], "abc", "")
    options.define_names("maybe", ["a"], "abc", "", may_be_empty=True)
    options.define_settings("set", "")
    if isinstance(value, str) and value != "last":
        with pytest.raises(flags.IllegalFlagValueError, match=value):
            found(["binary", words])
        return
    found(["binary", words])
    assert found[words[2:].split("=")[0]].value == value
    assert "(default: '20,20')" in found.get_help()


def ended(main, monkeypatch, capsys, *stray, **more):
    """The exit code and what is said when `main` ends badly."""
    monkeypatch.setattr(common.app, "run", lambda guarded: guarded(["x", *stray]))
    monkeypatch.setattr(common.os, "_exit", sys.exit)
    flags.FLAGS.mark_as_parsed()
    try:
        with pytest.raises(SystemExit) as end:
            common.run(main, **more)
    finally:
        flags.FLAGS.unparse_flags()
    return end.value.code, capsys.readouterr().err


def test_ends_are_one_line(monkeypatch, capsys):
    def stop(argv):
        raise KeyboardInterrupt

    def lack(argv):
        importlib.import_module("no_such_module")

    code, text = ended(stop, monkeypatch, capsys, stopped="stopped; again")
    assert (code, text) == (130, "stopped; again\n")
    code, text = ended(lack, monkeypatch, capsys)
    assert code == 1
    assert text == (
        "error: No module named 'no_such_module'; pip install '.[experiments]'\n"
    )
    code, text = ended(stop, monkeypatch, capsys, "stray")
    assert (code, text.count("\n")) == (1, 1)
    assert "'stray'; flags begin with --" in text
    assert not logging.getLogger("jax").isEnabledFor(logging.INFO)


def test_nothing_is_made_where_results_cannot_be_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        report.new_directory(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bars_have_the_words_alone(monkeypatch):
    text, whole = io.StringIO(), tqdm.tqdm
    shown = {"disable": False, "file": text, "mininterval": 0}
    monkeypatch.setattr(tqdm, "tqdm", lambda items, **k: whole(items, **(k | shown)))
    assert list(common.progress([2, 3], "of {}".format)) == [2, 3]
    assert "of 3: 1 of 2 |" in text.getvalue()


SECOND = "--second_order"


@pytest.mark.parametrize(
    ("name", "flags", "text"),
    [
        ("meta_train", ["--task=nothing", "--workdir=x"], "digits_mlp"),
        ("meta_train", ["--task=mnist_mlp", "--workdir=x"], "data_dir"),
        ("meta_train", ["--estimator=score_function", "--workdir=x", SECOND], "bptt"),
        ("meta_train", ["--workdir=README.md"], "must be a directory"),
        (
            "meta_train",
            ["--optimizer=longrun", "--task=digits_cnn_small", "--workdir=x"],
            "learned_axes=4",
        ),
        (
            "meta_train",
            [
                "--optimizer=longrun",
                "--task=digits_cnn_small",
                "--hyper_parameters=learned_axes=3",
                "--workdir=x",
            ],
            "learned_axes=4",
        ),
        ("meta_train", ["--coordinator_address=x", "--workdir=x"], "HOST:PORT"),
        ("evaluate", ["--weights=none.npz", "--outdir=x"], "none.npz"),
        ("evaluate", ["--tuned=README.md", "--outdir=x"], "--tuned=README.md"),
        ("tune_baselines", ["--task=quadratic"], "outdir"),
        ("tune_baselines", ["--data_dir=/none", "--outdir=x"], "/none is no dir"),
        ("publish", ["--workdir=none", "--name=a"], "none holds no run"),
        ("publish", ["--workdir=none", "--name=a/b"], "--name=a/b"),
        ("bench_memory", ["--sizes=1234"], "multiples of 8,000"),
        ("bench_step", ["--sizes=7", "--columns=2"], "multiples of --columns=2, got"),
    ],
)
def test_errors_of_users_are_one_line(name, flags, text):
    message = binary(name, *flags, fails=True)
    assert text in message
    assert "Traceback" not in message


BINARIES = [
    path
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "__main__" in path.read_text()
]


@pytest.mark.parametrize("path", BINARIES, ids=lambda path: path.stem)
def test_habits(path):
    """One way to start, a look with --quick where something is computed."""
    text = path.read_text()
    assert re.search(r"^    common\.run\(", text, re.MULTILINE)
    looks = "main, quick=" in " ".join(text.split()) or "FLAGS.quick" in text
    assert looks == (path.stem not in ("publish", "watch")), "--quick"
    assert f"python -m experiments.{path.stem}" in text.split('"""')[1]


def test_help_has_the_flags_that_binaries_share():
    done = subprocess.run(
        command("long_horizon", "--help"), cwd=ROOT, capture_output=True, text=True
    )
    found = re.findall(r"^  --(?:\[no\])?(\w+)", done.stdout, re.MULTILINE)
    assert {"table", "outdir", "data_dir", "quick"} <= set(found)
    assert "runs/long_horizon" in done.stdout
    # Where nothing is computed some would mean nothing.
    assert "data_dir" in binary("watch", "--data_dir=x", "--workdir=x", fails=True)


def test_quick_gives_way_to_flags(tmp_path):
    flags = ["--task=quadratic", "--optimizers=sgd", "--num_steps=100", "--quick"]
    text = binary("tune_baselines", *flags, f"--outdir={tmp_path / 'out'}")
    tuned = json.loads((tmp_path / "out" / "tuned.json").read_text())
    assert list(tuned["optimizers"]) == ["sgd"]
    assert (tuned["num_steps"], tuned["num_runs"]) == (100, 2)
    assert tuned["optimizers"]["sgd"]["rate"] is None
    assert "sgd has no rate without a diverging run" in text
    assert f"writing to {tmp_path / 'out'}" in text
