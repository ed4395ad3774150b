"""Imports run downward, and what is heavy is imported only when it is asked for."""

import ast
import pathlib

import pytest

import l2l_jax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = pathlib.Path(l2l_jax.__file__).parent
FLOORS = [
    {"types", "checks", "files", "compiler", "interruption", "progress"},
    {"processes"},
    {"trees", "lstm", "preprocess", "sharding", "lazy", "probe", "groups", "mutual"},
    {"fused", "chunks"},
    {"kernel"},
    {"optimizers.coordinatewise"},
    {"optimizers.averaging", "optimizers.quasi_newton"},
    {
        "optimizers.rnnprop",
        "optimizers.dm",
        "optimizers.longrun",
        "optimizers.ntm_bfgs",
    },
    {"optimizers.learned"},
    {"tasks.data", "tasks.shuffle", "random_scaling", "convex"},
    {
        "tasks.quadratic",
        "tasks.folder",
        "tasks.mlp",
        "tasks.conv",
    },
    {"tasks.classification", "tasks.sine"},
    {"tasks"},
    {"meta"},
    {"blockwise", "evolution"},
    {"estimators"},
    {"trainer"},
    {"evaluate"},
    {"baselines", "records", "checkpoint", "run_config"},
    {"selection", "plotting"},
    {"runs"},
    {""},
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
PUBLIC = {"", "tasks", "baselines", "estimators", "plotting", "probe", "runs"}
HEAVY = {"tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "orbax"}
HEAVY |= {"tensorboardX", "tqdm", "absl"}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def rooms_imported(path):
    """Rooms of l2l_jax that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "l2l_jax"
        ):
            module = node.module.removeprefix("l2l_jax").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                exported = not module and alias.name in l2l_jax.__all__
                yield inner if inner in FLOOR and not exported else module
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("l2l_jax").lstrip(".")
                for a in node.names
                if a.name.split(".")[0] == "l2l_jax"
            )


LIBRARY = [p for p in sorted((PACKAGE).rglob("*.py")) if p.stat().st_size]


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_imports_run_downward(path):
    room = name_of(path)
    for other in rooms_imported(path):
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}"
        sides = {x.split(".")[0] for x in (room, other)}
        assert sides != {"optimizers", "tasks"}
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in getattr(node, "names", [])]
        modules = [node.module] if isinstance(node, ast.ImportFrom) else names
        if isinstance(node, ast.Import | ast.ImportFrom) and room != "checkpoint":
            assert not HEAVY & {(m or "").split(".")[0] for m in modules}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").rglob("*.py")), ids=lambda p: p.stem
)
def test_binaries_use_public_names(path):
    assert set(rooms_imported(path)) <= PUBLIC
