"""The binaries, run as a user runs them."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def command(name, *flags):
    return [sys.executable, "-m", f"experiments.{name}", *map(str, flags)]


def binary(name, *flags, fails=False):
    done = subprocess.run(
        command(name, *flags),
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout
