"""The state machine: `apply(db, index, command)` is the only thing that writes the replicated tables.

The same commands in the same order give the same tables on every master: whatever depends on time or chance
is in the command. A command that cannot be carried out is refused with an answer and changes nothing; any other
exception is a bug, and the process that meets it must stop without committing.
"""

from pistage.core.machine.apply import apply, create_tables
from pistage.core.machine.masters import command_version, forget_all_but
from pistage.core.machine.meta import Position, applied_index, position, set_position
from pistage.core.machine.outcome import CancelAttempt, Effect, Outcome, ReleaseRun, SendAssignment

__all__ = [
    "CancelAttempt",
    "Effect",
    "Outcome",
    "Position",
    "ReleaseRun",
    "SendAssignment",
    "applied_index",
    "apply",
    "command_version",
    "create_tables",
    "forget_all_but",
    "position",
    "set_position",
]
