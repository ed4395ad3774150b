"""The one small file that holds a learned optimizer."""

import io
import json
import pathlib
import pickle
import random
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_weights

from l2l_jax import Learned, LongrunParams, dm_init, load, save

LEARNED = {
    "rnnprop": Learned(
        "rnnprop",
        random_weights("rnnprop", (4, 3), 5),
        {"step_size": 0.05},
        {"iterations": 7},
    ),
    "dm": Learned("dm", random_weights("dm", (3,)), {"p": 5.0}),
    "longrun": Learned("longrun", random_weights("longrun"), {"averaging": 0.5}),
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
        assert ("factor" if kind == "longrun" else "output/bias") in archive


def test_config_and_overrides_reach_the_transformation():
    learned, g = LEARNED["rnnprop"], jnp.ones(2)

    def first_update(tx):
        return tx.update(g, tx.init(g))[0]

    half = first_update(learned.transform())
    whole = first_update(learned.transform(step_size=0.1))
    np.testing.assert_allclose(2 * half, whole, rtol=1e-6)
    text = r"a hyper-parameter of rnnprop must be one of .*'step_size'.*, got 'rate'"
    with pytest.raises(ValueError, match=text):
        learned.transform(rate=0.1)
    with pytest.raises(TypeError, match=r"step_size must .*inject_hyperparams takes"):
        learned.transform(step_size=lambda count: 0.1)


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
    "unknown hyper-parameter": (metadata(config={"rate": 1}), "'rate'"),
    "bad hyper-parameter": (metadata(config={"b1": 2}), "b1 .* 2.0"),
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


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.soak)])
def test_no_bit_and_no_cut_goes_unnoticed(tmp_path, every):
    """Refused by name, or read as it was: dates, for one, do not matter."""
    path, rng = tmp_path / "broken.npz", random.Random(0)
    learned = Learned("dm", dm_init(jax.random.key(0), (1,)), {"p": 5.0})
    save(path, learned)
    content, refused = path.read_bytes(), 0
    for i in range(0, len(content), every):
        flipped = bytearray(content)
        flipped[i] ^= 1 << rng.randrange(8)
        for damaged in (flipped, content[:i]):
            path.write_bytes(damaged)
            try:
                found = load(path)
            except ValueError as error:
                message = str(error)
            else:  # what is not noticed must have changed nothing
                assert len(damaged) == len(content), i
                assert (found.kind, found.config) == ("dm", {"p": 5.0})
                jax.tree.map(
                    np.testing.assert_array_equal, found.params, learned.params
                )
                continue
            assert str(path) in message
            refused += 1
    assert refused > 1.5 * len(content) / every


class Bomb:
    """What happens when a pickle of it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


SPACES = b" " * (1 << 27)


def inflating(path):
    """128 MiB of spaces in 130 kB, in front of honest metadata."""
    with zipfile.ZipFile(path) as archive:
        old = archive.read("metadata.json")
    rewrite(path, **{"metadata.json": None})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", SPACES + old)


def lying(path):
    """The same, and the directory of the archive claims 100 bytes."""
    inflating(path)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"metadata.json") - 46
    assert int.from_bytes(content[entry + 24 : entry + 28], "little") > len(SPACES)
    content[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
    path.write_bytes(content)


def overlapping(path):
    """A thousand names for one member that is there once."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("real", SPACES[: 1 << 20])
        (info,) = (i for i in archive.infolist() if i.filename == "real")
        for i in range(1000):
            archive.filelist.append(copy_of(info, f"member{i}"))


def copy_of(info, name):
    other = zipfile.ZipInfo(name)
    for field in ("CRC", "file_size", "compress_size", "header_offset"):
        setattr(other, field, getattr(info, field))
    return other


def add(name, content=b""):
    def change(path):
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content)

    return change


def replace(**changes):
    return lambda path: rewrite(path, **changes)


def pickled(path):
    path.write_bytes(pickle.dumps(Bomb(path.parent / "executed")))


def pickled_array(path):
    value = np.array([Bomb(path.parent / "executed")])
    rewrite(path, **array(value, allow_pickle=True))


def pickled_member(path):
    rewrite(path, **{"output/bias.npy": pickle.dumps(Bomb(path.parent / "executed"))})


HOSTILE = {
    "pickle": (pickled, "not a zip file"),
    "pickled array": (pickled_array, "object"),
    "pickled member": (pickled_member, "magic string"),
    "inflating": (inflating, "compressed"),
    "lying": (lying, "compressed"),
    "overlapping": (overlapping, "'member0' is foreign"),
    "8 TB": (replace(**huge()), r"\(1000000000000,\)"),
    "sizes of 4 EB": (
        replace(**metadata(sizes={"hidden_sizes": [10**9] * 3})),
        "'lstm/2/bias.npy' is missing",
    ),
    "sizes beyond int64": (
        replace(**metadata(sizes={"hidden_sizes": [10**30]})),
        "damaged",
    ),
    "many layers": (
        replace(**metadata(sizes={"hidden_sizes": [1] * 10**5})),
        "more layers than it holds arrays",
    ),
    "nested": (replace(**{"metadata.json": b"[" * 10**6}), "recursion"),
    "number of many digits": (
        replace(**{"metadata.json": b"1" * 10**6}),
        "digits",
    ),
    "absolute path": (add("/l2l_jax_evil.npy"), "'/l2l_jax_evil.npy' is foreign"),
    "parent's path": (add("../evil.npy"), "'../evil.npy' is foreign"),
    "link": (add("link", b"/etc/passwd"), "'link' is foreign"),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_hostile_files_are_refused(kind, tmp_path):
    """Nothing is executed, written or, beyond the file's own size, allocated."""
    change, text = HOSTILE[kind]
    path = tmp_path / "hostile.npz"
    save(path, LEARNED["rnnprop"])
    change(path)
    content = path.read_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=text) as caught:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500
    assert peak < 20 * len(content) + (1 << 22)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert not (tmp_path.parent / "evil.npy").exists()
    assert not pathlib.Path("/l2l_jax_evil.npy").exists()
    assert path.read_bytes() == content


def test_the_bombs_are_armed(tmp_path):
    """Or the test before this one would show nothing."""
    path = tmp_path / "hostile.npz"
    pickled(path)
    pickle.loads(path.read_bytes()).close()
    assert (tmp_path / "executed").exists()
    save(path, LEARNED["dm"])
    inflating(path)
    assert path.stat().st_size < len(SPACES) / 500
    with zipfile.ZipFile(path) as archive:
        assert len(archive.read("metadata.json")) > len(SPACES)


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.npz"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(ValueError, match=r"large.npz .* larger than 268435456 bytes"):
        load(path)


def test_wrong_arguments(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="'other'"):
        save(tmp_path / "a.npz", LEARNED["dm"]._replace(kind="other"))
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path / "a.npz", LEARNED["dm"]._replace(config={"p": object()}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("learned", "error", "text"),
    [
        (LEARNED["dm"].params, TypeError, "learned must be Learned, got DMParams"),
        (LEARNED["dm"]._replace(kind="rnnprop"), ValueError, "'step_size'.* got 'p'"),
        (Learned("longrun", LEARNED["dm"].params), TypeError, "LongrunParams, got DM"),
        (LEARNED["dm"]._replace(config={"rate": 1}), ValueError, "'p', .* got 'rate'"),
        (LEARNED["dm"]._replace(config=None), TypeError, "config must be dict"),
        (
            LEARNED["longrun"]._replace(params=LongrunParams(jnp.full((4, 4), np.nan))),
            ValueError,
            "factor.npy holds numbers that are not finite",
        ),
        (
            Learned("longrun", LongrunParams(jnp.ones((4, 4), jnp.bfloat16))),
            ValueError,
            "must be float16, float32 or float64",
        ),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(learned, error, text, tmp_path):
    with pytest.raises(error, match=text):
        save(tmp_path / "a.npz", learned)
    assert not list(tmp_path.iterdir())


def test_the_error_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "nowhere" / "a.npz"
    with pytest.raises(FileNotFoundError, match=f"'{path}'$"):
        save(path, LEARNED["dm"])
