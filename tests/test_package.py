"""What installing and importing the package does, and does not."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import l2l_jax

PACKAGE = pathlib.Path(l2l_jax.__file__).parent

IMPORT = """
import sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import l2l_jax
print(*{name.partition(".")[0] for name in sys.modules})
print(*(path for path in opened if path.endswith((".npz", ".gz", ".bin", ".csv"))))
"""


def test_importing_starts_nothing_and_reads_nothing(tmp_path):
    """A device could not be started: there is no platform of that name."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=PACKAGE.parent,
        env={"JAX_PLATFORMS": "nothing", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules, files = done.stdout.splitlines()
    heavy = {"tensorflow", "tensorflow_datasets", "matplotlib", "sklearn", "tqdm"}
    assert not heavy & set(modules.split())
    assert "jax" in modules.split()
    assert not files
    assert not list(tmp_path.iterdir())


def test_the_other_modules_are_imported_when_asked_for():
    """They are named in documentation as attributes; nobody imports them before."""
    program = """
import sys, l2l_jax
names = ["baselines", "plotting", "probe", "runs"]
before = [name for name in names if f"l2l_jax.{name}" in sys.modules]
print(before, {*names} <= {*dir(l2l_jax)}, callable(l2l_jax.runs.run), end="")
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[] True True"
    with pytest.raises(AttributeError, match="no attribute 'trainers'"):
        _ = l2l_jax.trainers


def test_types_and_version_are_there():
    assert (PACKAGE / "py.typed").exists()
    requires = importlib.metadata.requires("l2l_jax")
    core = {line.split(">")[0] for line in requires if "extra" not in line}
    assert core == {"jax", "jaxlib", "flax", "optax", "chex", "numpy"}
    assert l2l_jax.__version__ == importlib.metadata.version("l2l_jax")


def test_the_oldest_releases_tested_are_the_lower_bounds():
    text = pathlib.Path(__file__).with_name("oldest.txt").read_text()
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.M))
    root = pathlib.Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    stated = dict(x.split(">=") for x in sum(extras, project["dependencies"]))
    assert {line.split(">")[0] for line in project["dependencies"]} <= set(tested)
    for name, version in tested.items():
        assert re.fullmatch(re.escape(stated[name]) + r"(\.0)*", version)
