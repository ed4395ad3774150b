"""What the README shows is true: its code runs, its commands have those flags."""

import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("optimized")

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"python -m (experiments\.\w+)([^`\n]*)", README)


def test_it_shows_code_and_commands():
    assert len(BLOCKS) >= 2
    assert {name for name, _ in COMMANDS} >= {
        "experiments.quickstart",
        "experiments.meta_train",
        "experiments.tune_baselines",
        "experiments.evaluate",
    }


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    block = block.replace("range(10)", "range(2)")  # compiling takes long enough
    with jax.numpy_rank_promotion("allow"):  # a reader has no such setting
        exec(compile(block, "README.md", "exec"), names)
        if "step" in names:
            x, y = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
            params, _, loss = names["step"](names["params"], names["state"], x, y)
    if "step" in names:
        assert loss == 9
        assert not np.array_equal(params["w"], names["params"]["w"])
    if "trainer" in names:
        assert names["state"].step == 2
        assert np.isfinite(names["metrics"]["train_loss"])
        assert (tmp_path / "mine.npz").exists()


@pytest.mark.parametrize(("name", "flags"), COMMANDS)
def test_command(name, flags):
    arguments = shlex.split(flags)
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments, "--only_check_args"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
