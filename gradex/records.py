"""Files that stages leave for one another: written whole, read with a check of what is in them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gradex.errors import GradexError

# Keys that must be there, each with its type or the shape of the mapping below it.
Shape = Mapping[str, Any]
SEAL = "sha256"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write so that a reader sees the old one or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        # Read and write: numpy writes to a file that is open for both through `write`, whose
        # errors say why; its own way to a file that is only written says how many bytes it lacks.
        with open(temporary, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise GradexError(f"{path}: cannot be written ({error.strerror or error})") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """A file that was renamed is only safe from a power cut when its folder is written too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """JSON with a checksum of itself, for what no other file could tell to be damaged."""
    write_json(path, {**content, SEAL: seal(content)})


def read_sealed(path: Path, what: str, shape: Shape | None = None) -> dict[str, Any]:
    """A JSON object as it was given to `write_sealed`."""
    content = read_json(path, what, shape)
    found = content.pop(SEAL, None)
    if found != seal(content):
        raise GradexError(f"{path}: damaged, not the content of its checksum; expected {what}")
    return content


def seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, what: str, shape: Shape | None = None) -> dict[str, Any]:
    """A JSON object from disk; `what` tells in an error what was expected there."""
    try:
        content = json.loads(text := path.read_text(encoding="utf-8"))
        if "\\ud" in text.lower():  # maybe half of a letter, which no file can be written with
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError:
        raise GradexError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise GradexError(f"{path}: {error.strerror}; expected {what}") from None
    except (ValueError, RecursionError) as error:
        raise GradexError(f"{path}: not valid JSON ({error}); expected {what}") from None
    require_shape(content, shape or {}, where=str(path), what=what)
    return content


def require_shape(content: Any, shape: Shape, *, where: str, what: str) -> None:
    """Refuse content that lacks a key of the shape or holds another type there."""
    if not isinstance(content, dict):
        raise GradexError(f"{where}: found {type(content).__name__}, expected {what}")
    for key, expected in shape.items():
        if key not in content:
            raise GradexError(f"{where}: key '{key}' is missing; expected {what}")
        value = content[key]
        if isinstance(expected, Mapping):
            require_shape(value, expected, where=f"{where}: {key}", what=what)
        elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            found = type(value).__name__
            raise GradexError(f"{where}: key '{key}' is {found} {value!r:.40}; expected {what}")
