"""Commands about output that is kept: for how long, where else, and that it goes; the bytes are outside the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pistage.core.retention import Drop, Retention


@dataclass(frozen=True, slots=True, kw_only=True)
class PinRun:
    """Keep the output of a run whatever retention says (`is_pinned`), or let it go by that again."""

    kind: Literal["pin_run"] = "pin_run"
    at: int
    run_id: str
    is_pinned: bool
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutRetention:
    """For how long output of a pipeline is kept from now on; `name` "*" is for all of which nothing else is said."""

    kind: Literal["put_retention"] = "put_retention"
    at: int
    project: str
    name: str
    retention: Retention


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRetention:
    """Keep output of a pipeline as that of any of which nothing was said."""

    kind: Literal["delete_retention"] = "delete_retention"
    at: int
    project: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DropOutput:
    """Every master removes the output of these runs: those that have ended, and that nobody has pinned or reads now.

    At most `retention.DROPS_MAX` of them.
    """

    kind: Literal["drop_output"] = "drop_output"
    at: int
    drops: tuple[Drop, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveOutput:
    """Output of these runs, at most `retention.DROPS_MAX` of them, is in the archive at `url`, all of it.

    `place` is where in the directory of each. A run that is in an archive already stays there: stubs may name that.
    """

    kind: Literal["archive_output"] = "archive_output"
    at: int
    run_ids: tuple[str, ...]
    url: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetArchive:
    """Nothing of these runs is in an archive any more."""

    kind: Literal["forget_archive"] = "forget_archive"
    at: int
    run_ids: tuple[str, ...]
