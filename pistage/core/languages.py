"""Languages: what `script:` can be written in, how a script is told to be in one, and what runs it.

A language has an image and words that run a file in it; an agent without images needs an interpreter of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final


class Installer(StrEnum):
    """What brings a language's requirements."""

    PIP = "pip"
    NPM = "npm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language. `command` is followed by the script's file and its arguments; `image` "" is none that is known."""

    command: tuple[str, ...]
    image: str = ""
    endings: tuple[str, ...] = ()  # of files in it; a file without a name gets the first
    installer: Installer | None = None


#: What is known without a word of configuration. `-u`: what a script prints is seen when it prints it.
DEFAULTS: Final[Mapping[str, Language]] = {
    "python": Language(
        command=("python3", "-u"), image="python:3.12-slim", endings=(".py", ".pyw"), installer=Installer.PIP
    ),
    "node": Language(
        command=("node",), image="node:22-slim", endings=(".js", ".mjs", ".cjs"), installer=Installer.NPM
    ),
    "sh": Language(command=("sh",), image="alpine:3", endings=(".sh",)),
    "bash": Language(command=("bash",), image="bash:5", endings=(".bash",)),
}  # fmt: skip

_NAME = re.compile(r"[a-z][a-z0-9+#._-]{0,39}")
ENDING: Final = re.compile(r"\.[A-Za-z0-9]{1,10}")  # it becomes part of a file's name
_VERSION = re.compile(r"[0-9.]+$")
_ALSO = {"nodejs": "node", "dash": "sh", "ash": "sh", "pypy": "python"}


def merged(
    name: str, *, image: str | None, command: tuple[str, ...] | None, endings: tuple[str, ...] | None,
    installer: str | None,
) -> Language:  # fmt: skip
    """A language as configuration has it: what it leaves out (None) is as in `DEFAULTS`."""
    known = DEFAULTS.get(name, Language(command=(name,)))
    return Language(
        image=known.image if image is None else image,
        command=command or known.command,
        endings=known.endings
        if endings is None
        else tuple(f".{ending.lower().removeprefix('.')}" for ending in endings),
        installer=known.installer if installer is None else Installer(installer) if installer != "none" else None,
    )


def is_name(text: str) -> bool:
    """Whether a language can be called so."""
    return _NAME.fullmatch(text) is not None


def ending_of(file: str) -> str:
    """How the name of a file ends, ".py"; "" if it does so in nothing that could stand in a name of ours."""
    suffix = PurePosixPath(file).suffix
    return suffix if ENDING.fullmatch(suffix) else ""


def detected(text: str, file: str | None, known: Mapping[str, Language]) -> str | None:
    """The language of a script by how its file's name ends, else by its first line (`#!`); None if neither says."""
    ending = ending_of(file or "").lower()
    by_ending = next((name for name, language in known.items() if ending and ending in language.endings), None)
    return by_ending or _by_first_line(text, known)


def _by_first_line(text: str, known: Mapping[str, Language]) -> str | None:
    if not text.startswith("#!"):
        return None
    words = text[2:].partition("\n")[0][:200].split()
    if words and PurePosixPath(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    if not words:
        return None
    program = _VERSION.sub("", PurePosixPath(words[0]).name)
    name = _ALSO.get(program, program)
    by_command = (known_name for known_name, language in known.items() if _program(language) == name)
    return name if name in known else next(by_command, None)


def _program(language: Language) -> str:
    return _VERSION.sub("", PurePosixPath(language.command[0]).name) if language.command else ""
