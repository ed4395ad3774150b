"""The tests that ship in the installed optax, run on optimizers of ours.

A suite is one file of them. Its tables of optimizers, and the functions of optax with
which it makes some, are replaced before its test classes are made; the tests that use
neither, even through functions of the file, are left out. What is replaced must be what
is expected there: another table, another optimizer, another class of tests in a new
release is an error, not something that quietly is not tested.
"""

import ast
import dataclasses
import functools
import os
import pathlib
import sys
import types
import unittest
import warnings
from typing import Any
from unittest import mock

import jax
import optax
import pytest

KEPT = object()  # in the place of a function that stays optax's own
ROOT = pathlib.Path(optax.__file__).parent


@dataclasses.dataclass(frozen=True)
class Suite:
    """One file of tests, and what is replaced in it.

    Attributes:
      path: of the file, in the package's directory.
      classes: names of the test classes with tests of optimizers.
      tables: names of the tables of optimizers, and ours.
      functions: names of modules from which the file takes optimizers, and for each
        all names that it takes: a function of ours, or `KEPT`.
      extended: likewise, but ours are added to whatever there is.
      newer: tables that older releases do not have.
      without: tests, by the beginning of their names, that say nothing of ours.
      eager: tests, likewise, to be run operation by operation: they compile at every
        step otherwise.
      soak: slow tests, likewise, to be run on demand.
      refused: tests in which ours has to fail, with the error and a pattern of its
        message.
    """

    path: str
    classes: set[str]
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)
    functions: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    extended: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    newer: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    eager: frozenset[str] = frozenset()
    soak: frozenset[str] = frozenset()
    refused: dict[str, tuple[type[Exception], str]] = dataclasses.field(
        default_factory=dict
    )


def load(suite: Suite, name: str) -> dict[str, type]:
    """The test classes of a suite, by names that end in `name`."""
    path = ROOT / suite.path
    stem = path.stem.strip("_")
    if not path.exists():
        return {f"{stem}_{name}": _missing(suite.path)}
    tree = ast.parse(path.read_text())
    tests = [node for node in tree.body if _is_test_class(node)]
    head = tree.body[: tree.body.index(tests[0])]
    _check(suite, tree, head)
    _leave_out(suite, tree, tests)
    module = types.ModuleType(f"optax_{stem}_{name}")
    sys.modules[module.__name__] = module
    # One suite asks for eight devices as it is imported, some warn.
    with mock.patch.dict(os.environ), warnings.catch_warnings(action="ignore"):
        _execute(head, path, module)
        for table, ours in suite.tables.items():
            if not hasattr(module, table):
                continue  # an older release; `_check` has seen to it
            _check_columns(suite, table, getattr(module, table), ours)
            setattr(module, table, ours)
        for made_by, ours in _stand_ins(suite):
            everything = vars(getattr(module, made_by)) | ours
            setattr(module, made_by, types.SimpleNamespace(**everything))
        _execute(tree.body[len(head) :], path, module)
    found = {node.name: getattr(module, node.name) for node in tests if node.body}
    assert set(found) == suite.classes, (
        f"{suite.path} of optax {optax.__version__} tests optimizers in {set(found)},"
        f" expected {suite.classes}"
    )
    # Older releases repeat a test in variants, with and without jit, pmap and so on.
    for cls in found.values():
        for key in dir(cls):
            if "__with" in key and not key.endswith("__with_jit"):
                setattr(cls, key, None)
    for test in suite.without:
        _change(found.values(), test, lambda original: None)
    for test in suite.eager:
        _change(found.values(), test, jax.disable_jit())
    for test in suite.soak:
        _change(found.values(), test, pytest.mark.soak)
    for test, (error, text) in suite.refused.items():
        _change(found.values(), test, functools.partial(_refused, error, text))
    return {f"{key}_{name}": cls for key, cls in found.items()}


def _stand_ins(suite):
    """Names of modules, and the functions of ours that go into them."""
    for made_by, functions in (*suite.functions.items(), *suite.extended.items()):
        yield made_by, {key: f for key, f in functions.items() if f is not KEPT}


def _missing(path):
    class Missing(unittest.TestCase):
        def test_suite(self):
            self.skipTest(f"optax {optax.__version__} does not ship {path}")

    return Missing


def _is_test_class(node):
    return isinstance(node, ast.ClassDef) and any(
        ast.unparse(base).endswith("TestCase") for base in node.bases
    )


def _check(suite, tree, head):
    """Raises if the file has other tables, or makes other optimizers, than expected."""
    tables = {
        target.id
        for node in head
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and not isinstance(node.value, ast.Constant)
    }
    wanted = set(suite.tables)
    for made_by, ours in suite.functions.items():
        found = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and _is_name(node.value, {made_by})
        }
        tables |= {f"{made_by}.{key}" for key in found - set(ours)}
        wanted |= {f"{made_by}.{key}" for key in set(ours) - found}
    assert wanted - suite.newer <= tables <= wanted, (
        f"{suite.path} of optax {optax.__version__} takes optimizers from {tables},"
        f" expected {wanted}"
    )


def _check_columns(suite, table, theirs, ours):
    """Raises if rows of our table are not made as theirs are."""
    shapes = []
    for rows in (theirs, ours):
        rows = list(rows.items() if isinstance(rows, dict) else rows)
        shapes.append(
            {tuple(row) if isinstance(row, dict) else len(row) for row in rows}
        )
    assert shapes[1] <= shapes[0], f"{suite.path}: rows of {table} are {shapes[0]}"


def _is_name(node, names):
    return isinstance(node, ast.Name) and node.id in names


def _leave_out(suite, tree, tests):
    """Takes the tests that use nothing of ours out of their classes."""
    ours = {
        f"{made_by}.{key}"
        for made_by, functions in suite.functions.items()
        for key, function in functions.items()
        if function is not KEPT
    }
    users = {*suite.tables, *suite.functions}

    def uses(node):
        inner = list(ast.walk(node))
        taken = [n for n in inner if isinstance(n, ast.Attribute)]
        # A module itself may be asked for a name, as in getattr(alias, "adam").
        partly = [n.value for n in taken if _is_name(n.value, suite.functions)]
        return any(ast.unparse(n) in ours for n in taken) or any(
            _is_name(n, users) and n not in partly for n in inner
        )

    definitions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    while new := {n.name for n in definitions if uses(n)} - users:
        users |= new
    for node in tests:
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        kept = [n for n in methods if n.name.startswith("test") and uses(n)]
        others = [n for n in node.body if not getattr(n, "name", "").startswith("test")]
        node.body = others + kept if kept else []
    tree.body = [n for n in tree.body if n not in tests or n.body]


def _execute(body, path, module):
    code = compile(ast.Module(body, []), str(path), "exec")
    exec(code, vars(module))


def _change(classes, test, change):
    """Puts the change of a test in its place, in all its variants."""
    members = [
        (cls, key)
        for cls in classes
        for key in dir(cls)
        if key.startswith(test) and getattr(cls, key)  # None if taken out
    ]
    assert members, f"optax {optax.__version__} has no test {test}"
    for cls, key in members:
        setattr(cls, key, change(getattr(cls, key)))


def _refused(error, text, original):
    def test(self):
        with pytest.raises(error, match=text):
            original(self)

    return test
