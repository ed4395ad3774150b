"""Checkpoints give back every bit, or say what is wrong."""

import json
import logging
import resource
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2l_jax import checkpoint


class Pair(NamedTuple):
    first: Any
    second: Any


def make_state(seed: int = 0) -> Pair:
    rng = np.random.default_rng(seed)
    # Any bits will do: NaNs with payloads, negative zeros, denormals.
    bits = jnp.asarray(rng.integers(0, 2**32, (7, 5), np.uint32))
    params = {
        "a/b.c": jax.lax.bitcast_convert_type(bits, jnp.float32),
        "a": {"b.c": [jnp.asarray(rng.normal(size=3), jnp.bfloat16), None, ()]},
        "f16": jnp.asarray(rng.normal(size=(2, 1)), jnp.float16),
    }
    others = {
        "flag": jnp.asarray([True, False]),
        "empty": jnp.zeros((0, 3), jnp.int8),
        "key": jax.random.split(jax.random.key(seed), 2),
        "rbg": jax.random.key(seed, impl="rbg"),
        "numpy": rng.normal(size=4),
        "scalar": np.float32(3),
        "complex": jnp.asarray([1 + 2j], jnp.complex64),
    }
    return Pair(Pair(params, optax.adam(1e-3).init(params["f16"])), others)


def assert_identical(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (type(x), x.dtype, x.shape) == (type(y), y.dtype, y.shape)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        else:
            assert isinstance(x, np.ndarray | np.generic) or x.committed == y.committed
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize(
    "state",
    [make_state(), jnp.float32(3.0), {}, {"empty": jnp.zeros((2, 0))}],
    ids=["rich", "scalar", "nothing", "no elements"],
)
def test_round_trip(tmp_path, state):
    checkpoint.save(tmp_path, 5, state)
    example = jax.tree.map(lambda x: x if x.ndim == 0 else x[::-1], state)
    iteration, restored = checkpoint.restore(tmp_path, example)
    assert iteration == 5
    assert_identical(restored, state)


def test_abstract_example(tmp_path):
    state = {"w": jnp.arange(3.0), "key": jax.random.key(3)}
    checkpoint.save(tmp_path, 0, state)
    _, restored = checkpoint.restore(tmp_path, jax.eval_shape(lambda: state))
    assert_identical(restored, state)


def test_keeps_two_and_the_spared(tmp_path):
    for iteration, keep in [(2, ()), (4, ()), (10, ()), (11, {4}), (12, {4}), (13, {})]:
        checkpoint.save(tmp_path, iteration, jnp.float32(iteration), keep=keep)
        if iteration == 12:
            assert checkpoint.iterations(tmp_path) == (4, 11, 12)
    assert checkpoint.iterations(tmp_path) == (12, 13)
    assert checkpoint.restore(tmp_path, jnp.float32(0)) == (13, 13.0)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            np.zeros((2, 4), np.float32),
            r"float32\[2,3\] saved, float32\[2,4\] expected",
        ),
        (np.zeros((2, 3), np.int32), r"float32\[2,3\] saved, int32\[2,3\] expected"),
        ({"b": np.zeros(1)}, r"\['b'\]: nothing saved, float64\[1\] expected"),
        (None, r"\['w'\]: float32\[2,3\] saved, nothing expected"),
    ],
)
def test_another_state_is_refused(tmp_path, example, message):
    checkpoint.save(tmp_path, 3, {"w": np.ones((2, 3), np.float32)})
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.restore(tmp_path, {"w": example})
    assert str(tmp_path / "checkpoints" / "3") in str(error.value)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()])
def test_damage_is_never_restored(tmp_path, damage):
    """Each file is damaged in turn; some (commit marks, timestamps) do not matter."""
    state = {"w": jnp.arange(10_000.0), "b": jnp.ones(3)}
    checkpoint.save(tmp_path, 1, state)
    checkpoint.save(tmp_path, 2, state)
    newest = tmp_path / "checkpoints" / "2"
    noticed = 0
    for path in [path for path in newest.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        damage(path)
        message = None
        try:  # no pytest.raises: not every damage has to be noticed
            iteration, restored = checkpoint.restore(tmp_path, state)
        except ValueError as error:
            message = str(error)
        if message is None:
            assert iteration == 2, path
            assert_identical(restored, state)
        else:
            assert str(newest) in message
            assert str(newest.with_name("1")) in message
            noticed += 1
        path.write_bytes(content)
    assert noticed >= 3


def by_another_program(path):
    import orbax.checkpoint as ocp

    shutil.rmtree(path)
    handler = ocp.StandardCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.StandardSave({"w": jnp.ones(3)}))


def by_a_newer_version(path):
    (path / "layout" / "metadata").write_text(json.dumps({"version": 2}))


def of_claims(path):
    """A layout of 4 TB, with a checksum that fits."""
    state = jnp.ones(3)
    layout, data = checkpoint._pack(state)
    layout[0]["shape"] = [10**12]
    data = data[:-4].tobytes()
    packed = np.frombuffer(data + checkpoint._checksum(layout, data), np.uint8)
    shutil.rmtree(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_pack", lambda _: (layout, packed))
        checkpoint.save(path.parents[1], 2, state)


def emptied(path):
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.filterwarnings("ignore")  # of Orbax, when it is used by itself
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (by_another_program, "not found in the checkpoint"),
        (by_a_newer_version, "its layout is no list; a newer l2l_jax may read it"),
        (of_claims, "buffer is smaller than requested size"),
        (emptied, "not found in the checkpoint"),
    ],
)
def test_what_is_no_checkpoint_of_ours(tmp_path, change, cause):
    state = {"w": jnp.ones(3)}
    for iteration in (1, 2):
        checkpoint.save(tmp_path, iteration, state)
    newest = tmp_path / "checkpoints" / "2"
    change(newest)
    with pytest.raises(ValueError, match=cause) as error:
        checkpoint.restore(tmp_path, state)
    assert f"checkpoint {newest} is damaged, or was not written by" in str(error.value)
    shutil.move(newest, tmp_path / "away")  # as the message says
    assert str(newest.with_name("1")) in str(error.value)
    assert checkpoint.restore(tmp_path, state)[0] == 1


def test_unfinished_checkpoint_does_not_count(tmp_path):
    checkpoint.save(tmp_path, 1, jnp.float32(1))
    checkpoints = tmp_path / "checkpoints"
    unfinished = checkpoints / "2.orbax-checkpoint-tmp"
    (checkpoints / "1").rename(unfinished)
    checkpoint.save(tmp_path, 1, jnp.float32(1))
    assert not unfinished.exists()
    unfinished.mkdir()
    assert checkpoint.iterations(tmp_path) == (1,)
    assert checkpoint.restore(tmp_path, jnp.float32(0)) == (1, 1.0)


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoints holds no checkpoint"):
        checkpoint.restore(tmp_path, {})
    for leaf in (0.1, "text", np.array([None]), np.ones(2, ">f8")):
        with pytest.raises(TypeError, match=r"state\['x'\] is .* numbers"):
            checkpoint.save(tmp_path, 1, {"x": leaf})
    checkpoint.save(tmp_path, 1, jnp.float32(1))
    with pytest.raises(FileExistsError, match="never replaced"):
        checkpoint.save(tmp_path, 1, jnp.float32(2))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        checkpoint.save(tmp_path / "file", 1, jnp.float32(1))


def test_full_disk_leaves_the_older_one(tmp_path):
    checkpoint.save(tmp_path, 1, jnp.float32(1))
    large = np.random.default_rng(0).normal(size=100_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=str(tmp_path / "checkpoints" / "2")):
            checkpoint.save(tmp_path, 2, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.restore(tmp_path, jnp.float32(0)) == (1, 1.0)
    checkpoint.save(tmp_path, 2, jnp.float32(2))


def test_quiet(tmp_path, caplog, capfd):
    absl = logging.getLogger("absl")
    handlers = logging.root.handlers.copy()
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "absl")
    checkpoint.save(tmp_path, 1, jnp.float32(1))
    checkpoint.restore(tmp_path, jnp.float32(0))
    assert not [record for record in caplog.records if record.name == "absl"]
    assert capfd.readouterr() == ("", "")
    assert not absl.disabled
    assert logging.root.handlers == handlers
