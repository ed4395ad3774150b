"""Files that are whole or absent, and errors that name them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Puts the file's name into the system's errors that lack it, or have another."""
    try:
        yield
    except OSError as error:
        # An error that Python code made of a text has no number, and shows no name.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    with naming(path), path.open("r+b") as file:
        os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that it is at any moment either the old or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path, temporary):
            temporary.write_bytes(content)
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text."""
    write_bytes(path, text.encode())
