"""Timing of compiled programs for the benchmarks."""

import json
import os
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from experiments import common, options, report


def compile_seconds(function: Callable, *args: Any) -> tuple[Any, float]:
    """Compiles a jitted function for the arguments; the program and the seconds."""
    begin = time.perf_counter()
    compiled = function.lower(*args).compile()
    return compiled, time.perf_counter() - begin


def interleaved(
    programs: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, dict]:
    """Times programs in turn, so that a drift of the machine meets all of them.

    Args:
      programs: functions without arguments that return what to wait for.
      repeats: counted calls of each, after one that is not.

    Returns:
      Median, minimum and maximum seconds of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in common.progress(range(repeats + 1), lambda _: "timing in turn"):
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program())
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return {
        name: {
            "median_s": statistics.median(values),
            "min_s": min(values),
            "max_s": max(values),
        }
        for name, values in seconds.items()
    }


def analysis(compiled: Any) -> dict[str, float | None]:
    """XLA's own account of a program: FLOP, bytes accessed, temporary memory."""
    cost = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        "xla_flop": cost.get("flops"),
        "xla_bytes_accessed": cost.get("bytes accessed"),
        "xla_temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
    }


def peak_bytes() -> int:
    """Most memory so far: of the device if it tells, else of the process."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    """What ran the benchmark."""
    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
    }


def define_outdir() -> None:
    """Defines --outdir."""
    options.define_outdir(
        None, "Directory of the result, JSON; made, must be new; default: only print."
    )


def result_file(name: str) -> pathlib.Path | None:
    """`name` in --outdir, which is made; to be called before anything is measured."""
    path = flags.FLAGS.outdir
    return report.new_directory(path) / name if path else None


def write(path: pathlib.Path | None, result: dict[str, Any]) -> None:
    """Prints the result as JSON, and writes it to `path` if there is one."""
    print(json.dumps(result, indent=1))
    if path:
        report.write_json(path, result)
