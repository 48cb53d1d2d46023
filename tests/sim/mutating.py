"""Importing a module with some of its lines replaced: the shipped code has no hook for it, and needs none.

This file imports nothing of ours, because it has to come first.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

Edit = tuple[str, str, str]  # module, what stands there once, what stands there instead


def install(edits: Sequence[Edit]) -> None:
    """From here on this process imports the mutant."""
    loaded = [module for module, _, _ in edits if module in sys.modules]
    if loaded:
        raise RuntimeError(f"too late: {loaded} are imported already")
    sys.meta_path.insert(0, _Finder(edits))


class _Loader(importlib.abc.InspectLoader):
    def __init__(self, path: Path, edits: Sequence[tuple[str, str]]) -> None:
        self._path, self._edits = path, edits

    def get_source(self, fullname: str) -> str:
        return mutated(self._path.read_text(encoding="utf-8"), self._edits)

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_source(fullname), str(self._path))

    def is_package(self, fullname: str) -> bool:
        return False


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        edits = [(old, new) for module, old, new in self._edits if module == fullname]
        if not edits:
            return None
        return importlib.util.spec_from_loader(fullname, _Loader(source_of(fullname), edits))


def mutated(source: str, edits: Sequence[tuple[str, str]]) -> str:
    """The source with each line replaced; ValueError if one does not stand there exactly once."""
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(f"stands there {source.count(old)} times: {old!r}")
        source = source.replace(old, new)
    return source


def source_of(module: str) -> Path:
    """The file of a module, without importing it."""
    return Path(__file__).parent.parent.parent.joinpath(*module.split(".")).with_suffix(".py")
