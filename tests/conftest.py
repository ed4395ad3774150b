"""Strict settings, 8 devices, float64 where derivatives are checked, a whole run."""

import os

# What a test compiles it runs a few times: LLVM's optimizations take longer than they
# save. `optimized` has them where numbers are compared; the environment may have a say.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("binaries", "toy_runs")
collect_ignore = ["programs"]  # of their own, which tests start


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Processes that tests start share what they compile; it is most of their time."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(base / "compiled"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def optimized():
    """Compiles as it is done for users."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def x64():
    """Computes in float64 within the test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """The state and the directory of an uninterrupted run of 40 iterations."""
    from toy_runs import toy

    directory = tmp_path_factory.mktemp("straight") / "run"
    return toy.toy_run(directory, 40), directory
