"""Interpreters: in which languages an agent without images can run scripts, and by which words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pistage.agent.runtimes.base import ExecutionError
from pistage.config import AgentConfig
from pistage.core.languages import DEFAULTS
from pistage.core.plan import FailureClass


class Interpreters:
    """What the configuration names, and of what is known without it whatever is found.

    `path` is where programs are looked for; `within` are the directories that a script sees, all of them unless given.
    """

    def __init__(self, settings: AgentConfig, *, path: str, within: Sequence[str] | None = None) -> None:
        told = {name: one.command for name, one in settings.languages.items() if one.command}
        self._commands = {name: language.command for name, language in DEFAULTS.items()} | told
        self._path = path
        self._within = within

    def names(self) -> tuple[str, ...]:
        """The languages whose interpreters are there now."""
        return tuple(name for name in sorted(self._commands) if self.file_of(name) is not None)

    def command_of(self, language: str) -> tuple[str, ...]:
        """The words before a script's file; ExecutionError `refused` where there is no interpreter."""
        if self.file_of(language) is None:
            raise ExecutionError(FailureClass.REFUSED, f"this agent has no interpreter for {language}")
        return self._commands[language]

    def file_of(self, language: str) -> str | None:
        """The file of the interpreter, whatever links lead to it; None where there is none."""
        command = self._commands.get(language)
        found = shutil.which(command[0], path=self._path) if command else None
        if found is None:
            return None
        found_file = os.path.realpath(found)
        is_seen = self._within is None or any(
            Path(found_file).is_relative_to(os.path.realpath(d)) for d in self._within
        )
        return found_file if is_seen else None
