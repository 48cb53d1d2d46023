"""Predefined: the actions and examples that are shipped, read from the wheel, or from the checkout's `conf/`."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pistage.errors import Code, PistageError

_SUFFIXES = (".yaml", ".json")
_NAME = re.compile(r"^name: *(.+?) *$", re.MULTILINE)


@cache
def predefined_actions() -> dict[str, str]:
    """Name -> document of every action that can be used without being registered."""
    return {_name_of(text): text for text in _texts("actions").values()}


def example(name: str) -> str:
    """The document of the example called `name`, its file's name without the suffix; PistageError if there is none."""
    texts = _texts("examples")
    if name not in texts:
        raise PistageError(Code.NOT_FOUND, f"no example {name!r}", hint=f"there are {', '.join(texts)}")
    return texts[name]


def examples() -> tuple[str, ...]:
    """The names of all examples."""
    return tuple(_texts("examples"))


@cache
def _texts(kind: str) -> dict[str, str]:
    found = sorted(_directory(kind).iterdir(), key=lambda file: file.name)
    return {Path(file.name).stem: file.read_text(encoding="utf-8") for file in found if file.name.endswith(_SUFFIXES)}


def _directory(kind: str) -> Traversable:
    shipped = files(__name__) / kind
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "conf" / kind


def _name_of(text: str) -> str:
    """Our own documents give their name plainly on a line of its own."""
    found = _NAME.search(text)
    assert found is not None, "a predefined action has no name"
    return found[1]
