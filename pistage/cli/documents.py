"""Definitions on their way in: a file or an action's name, parameters, and a directory of actions for lint and plan."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pistage.errors import Code, PistageError

if TYPE_CHECKING:
    from pistage.core.definition import ActionText

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})


def read_text(path: str) -> str:
    """A document's text; `-` reads stdin."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PistageError(Code.NOT_FOUND, f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PistageError(Code.INVALID, f"{path} is not UTF-8 text") from None


def submission(target: str, *, parameters: dict[str, Any], start_node: str | None) -> dict[str, Any]:
    """The body of a submission: `target` is a file where there is one of that name, else a registered action."""
    body: dict[str, Any] = {}
    if target == "-" or Path(target).is_file():
        body["definition"] = read_text(target)
    elif Path(target).suffix in _SUFFIXES or "/" in target:
        what = "is a directory, not a file" if Path(target).is_dir() else "is no file"
        raise PistageError(Code.NOT_FOUND, f"{target} {what}", hint="name a definition, or - for stdin")
    else:
        body["action"] = target
    if parameters:
        body["with"] = parameters
    if start_node is not None:
        body["start_node"] = start_node
    return body


@contextmanager
def named(target: str) -> Iterator[None]:
    """What is found wrong inside is told as being in `target`: the master never learns a file's name."""
    try:
        yield
    except PistageError as error:
        error.details.setdefault("file", target)
        raise


def parameters(pairs: Sequence[str], file: Path | None, *, flag: str = "--with") -> dict[str, Any]:
    """Parameters of `--with-file` (a YAML or JSON mapping) under those of `--with k=v`, which stay text."""
    given: dict[str, Any] = {}
    if file is not None:
        given |= _mapping(file)
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise PistageError(Code.USAGE, f"{flag}: expected NAME=VALUE, got {pair!r}")
        given[name.strip()] = value
    return given


def local_actions(directory: Path | None) -> Callable[[str], ActionText | None]:
    """A look-up by name among the documents below `directory`, then among the predefined actions."""
    from pistage.core.definition import ActionText, document_name
    from pistage.predefined import predefined_actions

    texts = {name: (text, True) for name, text in predefined_actions().items()}
    for file in sorted(directory.rglob("*")) if directory else []:
        if file.suffix in _SUFFIXES and file.is_file():
            text = read_text(str(file))
            if (name := document_name(text)) is not None:
                texts[name] = (text, False)

    def look_up(name: str) -> ActionText | None:
        found = texts.get(name)
        if found is None:
            return None
        text, is_predefined = found
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        return ActionText(name=name, text=text, version=0, sha256=sha256, is_predefined=is_predefined)

    return look_up


def _mapping(file: Path) -> dict[str, Any]:
    import yaml

    text = read_text(str(file))
    try:
        loaded = json.loads(text) if file.suffix == ".json" else yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise PistageError(Code.USAGE, f"--with-file {where}: not valid YAML: {error.problem}") from None
    except json.JSONDecodeError as error:
        where = f"{file}:{error.lineno}:{error.colno}"
        raise PistageError(Code.USAGE, f"--with-file {where}: not valid JSON: {error.msg}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise PistageError(Code.USAGE, f"--with-file {file}: {error}") from None
    if not isinstance(loaded, dict):
        raise PistageError(
            Code.USAGE, f"--with-file {file}: expected a mapping of names to values", hint="write 'name: value' lines"
        )
    return loaded
