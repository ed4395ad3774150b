"""Kinds of flags that absl lacks: finite numbers, lists, settings, directories.

What is wrong with a value is said while flags are read, in one line.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags


class _Number(flags.ArgumentParser):
    """One finite number of at least `least`."""

    def __init__(self, kind: type = float, least: float | None = None):
        self.kind, self.least = kind, least
        words = {int: "an integer", float: "a finite number"}[kind]
        limit = "" if least is None else f" of at least {least:g}"
        self.syntactic_help = words + limit

    def parse(self, argument: Any) -> Any:
        try:
            value = self.kind(argument)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (self.least is not None and value < self.least):
            raise ValueError(f"{argument!r} is not {self.syntactic_help}")
        return value


class _Numbers(_Number):
    """Such numbers, joined by commas, or one of some words."""

    def __init__(self, kind: type, least: float | None, words: tuple[str, ...] = ()):
        super().__init__(kind, least)
        self.words = words
        self.syntactic_help += "; one or several, joined by commas"
        self.syntactic_help += "".join(f", or {word!r}" for word in words)

    def parse(self, argument: Any) -> Any:
        if argument in self.words:
            return argument
        items = argument.split(",") if isinstance(argument, str) else argument
        return [super(_Numbers, self).parse(item) for item in items]


class _Names(flags.ArgumentParser):
    """Some of the known names, joined by commas."""

    def __init__(self, known: tuple[str, ...], may_be_empty: bool):
        self.known, self.may_be_empty = known, may_be_empty
        self.syntactic_help = f"some of {', '.join(known)}, joined by commas"

    def parse(self, argument: Any) -> list[str]:
        items = argument.split(",") if isinstance(argument, str) else argument
        names = [name for item in items if (name := item.strip())]
        known = ", ".join(self.known)
        if not (names or self.may_be_empty):
            raise ValueError(f"it names nothing; known are {known}")
        if unknown := [name for name in names if name not in self.known]:
            raise ValueError(f"unknown {', '.join(unknown)}; known are {known}")
        return names


class _Settings(flags.ArgumentParser):
    """Names with values, as JSON or plain words: "rate=.1,cut=null"."""

    syntactic_help = "NAME=VALUE, one or several, joined by commas"

    def parse(self, argument: Any) -> dict[str, Any]:
        if isinstance(argument, dict):
            return argument
        settings = {}
        for item in argument.split(","):
            name, equals, value = item.partition("=")
            if not (name.strip() and equals and value.strip()):
                raise ValueError(f"{item!r} is not {self.syntactic_help}")
            settings[name.strip()] = _value(value.strip())
        return settings


def _value(text: str) -> Any:
    """What is meant: JSON, a number that JSON would write otherwise, or a word."""
    for read in (json.loads, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return text


class _Joined(flags.ArgumentSerializer):
    def serialize(self, value: Any) -> str:
        return spelt(value)


def spelt(value: Any) -> str:
    """As on a command line.

    Example:
      >>> spelt([1, 2]), spelt("last"), spelt({"rate": 0.1, "cut": None})
      ('1,2', 'last', 'rate=0.1,cut=null')
    """
    if isinstance(value, dict):
        words = {
            k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()
        }
        return ",".join(f"{name}={word}" for name, word in words.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def define_float(
    name: str, default: float | None, text: str, least: float | None = None
) -> None:
    """Defines a flag whose value is a finite float of at least `least`."""
    flags.DEFINE(_Number(float, least), name, default, text, flags.FLAGS, _Joined())


def define_settings(name: str, text: str) -> None:
    """Defines a flag whose value is a dict of names and values, or None."""
    flags.DEFINE(_Settings(), name, None, text, flags.FLAGS, _Joined())


def define_numbers(
    name: str,
    default: Sequence[float] | str | None,
    text: str,
    kind: type = int,
    least: float | None = 1,
    words: Sequence[str] = (),
) -> None:
    """Defines a flag whose value is a list of numbers.

    Args:
      name: of the flag.
      default: the list, one of the words, or None.
      text: for --help.
      kind: int or float; floats are finite.
      least: the smallest that each may be.
      words: that may stand in place of a list.
    """
    parser = _Numbers(kind, least, tuple(words))
    flags.DEFINE(parser, name, default, text, flags.FLAGS, _Joined())


def define_names(
    name: str,
    default: Sequence[str] | None,
    known: Iterable[str],
    text: str,
    may_be_empty: bool = False,
) -> None:
    """Defines a flag whose value is a list of some of the known names."""
    parser = _Names(tuple(known), may_be_empty)
    flags.DEFINE(parser, name, default, text, flags.FLAGS, _Joined())


def define_directory(
    name: str, default: str | None, text: str, required: bool = False
) -> None:
    """Defines a flag whose value is a directory, there or to be made."""
    flags.DEFINE_string(name, default, text, required=required)
    flags.register_validator(
        name,
        lambda path: path is None or not pathlib.Path(path).is_file(),
        "is a file, and must be a directory",
    )


def define_outdir(
    default: str | None = None,
    text: str = "Directory of the results; made, must be new.",
    required: bool = False,
) -> None:
    """Defines --outdir."""
    define_directory("outdir", default, text, required)
