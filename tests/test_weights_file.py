"""The one small file that holds a learned optimizer."""

import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax import Learned, dm_init, load, rnnprop_init, save

LEARNED = {
    "rnnprop": Learned(
        "rnnprop",
        rnnprop_init(jax.random.key(0), (4, 3), input_size=5),
        {"step_size": 0.05},
        {"iterations": 7},
    ),
    "dm": Learned("dm", dm_init(jax.random.key(0), (3,)), {"p": 5.0}),
}
KINDS = pytest.mark.parametrize("kind", list(LEARNED))


@KINDS
def test_round_trip_is_exact_and_repeatable(kind, tmp_path):
    learned = LEARNED[kind]
    save(tmp_path / "a.npz", learned)
    save(tmp_path / "b.npz", learned)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = load(tmp_path / "a.npz")
    assert jax.tree.structure(found.params) == jax.tree.structure(learned.params)
    for a, b in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(learned.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert (found.kind, found.config, found.training) == (
        kind,
        learned.config,
        learned.training,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    with np.load(tmp_path / "a.npz") as archive:
        assert "output/bias" in archive


def test_config_and_overrides_reach_the_transformation():
    learned, g = LEARNED["rnnprop"], jnp.ones(2)

    def first_update(tx):
        return tx.update(g, tx.init(g))[0]

    half = first_update(learned.transform())
    whole = first_update(learned.transform(step_size=0.1))
    np.testing.assert_allclose(2 * half, whole, rtol=1e-6)


def rewrite(path, **changes):
    """Replaces members by bytes, changes them by a function or removes them (None)."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, change in changes.items():
        old = members.pop(name)
        if change is not None:
            members[name] = change(old) if callable(change) else change
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def metadata(**changes):
    return {"metadata.json": lambda old: json.dumps(json.loads(old) | changes)}


def array(value, **options):
    buffer = io.BytesIO()
    np.save(buffer, value, **options)
    return {"output/bias.npy": buffer.getvalue()}


def huge():
    """A header that claims 8 TB."""
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return {"output/bias.npy": buffer.getvalue()}


# "object" is a pickle, which must not be executed.
DAMAGE = {
    "newer version": (metadata(version=99), "version 99"),
    "unknown kind": (metadata(kind="other"), "'other'"),
    "foreign": (metadata(format="something"), "does not say format"),
    "not JSON": ({"metadata.json": b"{"}, "damaged"),
    "no metadata": ({"metadata.json": None}, "metadata.json"),
    "missing array": ({"output/bias.npy": None}, "output/bias"),
    "wrong shape": (array(np.zeros(3, np.float32)), r"shape \(1,\)"),
    "integers": (array(np.zeros(1, int)), "int64"),
    "not finite": (array(np.array([np.nan], np.float32)), "not finite"),
    "object": (array(np.array([{}]), allow_pickle=True), "object"),
    "huge": (huge(), r"\(1000000000000,\)"),
    "strange sizes": (metadata(sizes={"hidden_sizes": "x"}), "hidden_sizes"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_files_are_refused(damage, tmp_path):
    changes, text = DAMAGE[damage]
    path = tmp_path / "broken.npz"
    save(path, LEARNED["rnnprop"])
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=text) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", ["half", "one byte", "not a zip"])
def test_damaged_bytes_are_refused(cut, tmp_path):
    path = tmp_path / "broken.npz"
    save(path, LEARNED["dm"])
    content = bytearray(path.read_bytes())
    if cut == "half":
        content = content[: len(content) // 2]
    elif cut == "one byte":
        content[content.index(b"\x93NUMPY") + 200] ^= 1
    else:
        content = b"weights"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load(path)


def test_wrong_arguments(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="'other'"):
        save(tmp_path / "a.npz", LEARNED["dm"]._replace(kind="other"))
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path / "a.npz", LEARNED["dm"]._replace(config={"p": object()}))
    assert not list(tmp_path.iterdir())
