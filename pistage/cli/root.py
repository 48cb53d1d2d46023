"""The entry of the program: the table of verbs, loaded when they are called, and the one place where errors end."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from pistage import __version__
from pistage.errors import Code, PistageError

INTERRUPTED: Final = 130
CLOSED_PIPE: Final = 141  # as the shell says of a program that SIGPIPE ended


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb's command lives, and the line that the overview shows for it without loading it."""

    module: str
    summary: str
    family: str


_RUN, _LOOK, _CLUSTER, _SETUP = (
    "Run pipelines",
    "Look at runs, and steer them",
    "Run and look after a cluster",
    "Set up",
)

VERBS: Final[dict[str, Verb]] = {
    "run": Verb("run", "Run a definition or a registered action and follow it.", _RUN),
    "script": Verb("script", "Run a Python, Node or shell script and leave with its code.", _RUN),
    "lint": Verb("definitions", "Check definitions; needs no server.", _RUN),
    "plan": Verb("definitions", "Show what would run: tasks, steps, images, commands.", _RUN),
    "action": Verb("actions", "List, register, show and remove actions.", _RUN),
    "cron": Verb("schedules", "Run definitions and actions by schedules.", _RUN),
    "after": Verb("afters", "Show and remove what runs after other runs.", _RUN),
    "webhook": Verb("webhooks", "Run definitions and actions when somebody outside says so.", _RUN),
    "notice": Verb("notices", "Say who is told when runs end.", _RUN),
    "ps": Verb("runs", "List runs, the newest first.", _LOOK),
    "show": Verb("runs", "Show a run: its tasks, attempts and steps.", _LOOK),
    "logs": Verb("logs", "Print the output of a run, a task or a step.", _LOOK),
    "why": Verb("why", "Say why a run's tasks are where they are, agent by agent.", _LOOK),
    "watch": Verb("watch", "Follow a run live until it is over.", _LOOK),
    "wait": Verb("watch", "Wait until a run is over and exit with its code.", _LOOK),
    "retry": Verb("retry", "Run an ended run again, whole or from what failed, and follow it.", _LOOK),
    "cancel": Verb("runs", "Cancel a run, or a task of it.", _LOOK),
    "priority": Verb("runs", "Give a run that waits another priority.", _LOOK),
    "pin": Verb("retention", "Keep the output of a run, whatever retention says.", _LOOK),
    "unpin": Verb("retention", "Let the output of a run go by retention again.", _LOOK),
    "retention": Verb("retention", "Say for how long output is kept.", _LOOK),
    "queue": Verb("queues", "List queues and say how they are served.", _LOOK),
    "dev": Verb("dev", "Start a master and an agent in one process.", _CLUSTER),
    "serve": Verb("serve", "Start a master or an agent.", _CLUSTER),
    "agent": Verb("agents", "List, show, drain, resume and remove agents.", _CLUSTER),
    "cluster": Verb("cluster", "Show, grow, mend, back up and restore the masters.", _CLUSTER),
    "config": Verb("setup", "Show each configuration key, its value and where that came from.", _SETUP),
    "doctor": Verb("doctor", "Find what is wrong with this machine and say how to mend it.", _SETUP),
    "completion": Verb("setup", "Print the completion script of a shell.", _SETUP),
    "version": Verb("setup", "Print the version.", _SETUP),
}


class LazyGroup(click.Group):
    """The root command; the modules of the verbs are imported one at a time, so that the overview is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (verb := VERBS.get(cmd_name)) is None:
            return None
        module = importlib.import_module(f"pistage.cli.{verb.module}")
        command = getattr(module, f"{cmd_name}_verb")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in VERBS:
            raise click.UsageError(f"no verb {name!r}{_nearest(name)}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `pistage logs … | head` has all that it wants; click would call that a failure
            _leave_pipe()
            return CLOSED_PIPE

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for family in dict.fromkeys(verb.family for verb in VERBS.values()):
            with formatter.section(family):
                rows = [(name, verb.summary) for name, verb in VERBS.items() if verb.family == family]
                formatter.write_dl(rows)


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(VERBS), n=1)
    return f"; did you mean {close[0]}?" if close else "; see pistage --help"


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version", message="pistage %(version)s")
def cli() -> None:
    """Pipelines of containers on many machines.

    Start with `pistage run FILE`: without a server it runs in an embedded cluster of its own.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and leave the process with its exit code."""
    code = execute(argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_pipe()
    except OSError as error:
        # What was printed last meets the full disk only now, or again: some Pythons keep it and flush it at the exit.
        code = code or _explained(error)
        _abandon_stdout()
    sys.exit(code)


def execute(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code; every error ends here as a message and a hint on stderr."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        result = cli.main(args=args, prog_name="pistage", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        return _explained(error)
    return result if isinstance(result, int) else 0


def _explained(error: BaseException) -> int:
    """Say what happened; the exit code for it."""
    match error:
        case click.ClickException():
            error.show()
            code = error.exit_code
        case PistageError():
            _show(error)
            code = error.exit_code
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EIO):  # what is ours to write says so itself
            full = PistageError(
                Code.STORAGE, f"cannot write the output: {error.strerror}", hint="make room where it is written to"
            )
            _show(full)
            code = full.exit_code
        case KeyboardInterrupt() | click.Abort():
            click.echo("interrupted", err=True)
            code = INTERRUPTED
        case _:  # a bug of ours must not look like a run that failed
            traceback.print_exception(error)
            bug = PistageError(Code.INTERNAL, f"a bug of Pistage: {error!r}", hint="please report the lines above")
            _show(bug)
            code = bug.exit_code
    return code


def _show(error: PistageError) -> None:
    from pistage.cli import findings, terminal

    found = findings.of(error)
    for finding in found:
        click.echo(findings.line(finding, str(error.details.get("file", ""))), err=True)
    is_told = findings.has_error(found)
    message = findings.verdict(found, str(error.details.get("file", ""))) if is_told else error.message
    click.echo(f"{click.style('error', fg='red', bold=True)}: {terminal.clean(message)}", err=True)
    if error.hint and not is_told:
        click.echo(f"{click.style('hint', fg='cyan')}: {terminal.clean(error.hint)}", err=True)


def _leave_pipe() -> None:
    """Nobody reads stdout any more: point it elsewhere, or the interpreter complains when it flushes at exit."""
    _abandon_stdout()


def _abandon_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
