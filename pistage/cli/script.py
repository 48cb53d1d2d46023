"""The verb `script`: run a file of code on the cluster as if it ran here."""

from __future__ import annotations

import base64
import os
import shlex
import stat
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import click

from pistage.cli import documents, findings, groups, options, output
from pistage.cli.connect import connect
from pistage.cli.follow import EXIT_CODES
from pistage.cli.run import Manner, followed, manner_options, refuse_unless_it_may_leave
from pistage.cli.scriptscreen import ScriptScreen
from pistage.client import Run
from pistage.config import ClientConfig, Config
from pistage.core import limits
from pistage.errors import Code, PistageError

TIMED_OUT = 124  # as timeout(1) says of a command that it ended
_SLOW_S = 2.0  # then what is waited for is said


@click.command(
    "script", short_help="Run a Python, Node or shell script and leave with its code.",
    context_settings={"allow_interspersed_args": False},
)  # fmt: skip
@click.argument("file", metavar="FILE")
@click.argument("args", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("-l", "--language", metavar="NAME", help="What it is written in, where its name and `#!` do not say.")
@click.option(
    "-r", "--require", "requirements", multiple=True, metavar="PACKAGE", help="A requirement; may be repeated."
)
@click.option("-e", "--env", "pairs", multiple=True, metavar="NAME=VALUE", help="A variable; may be repeated.")
@click.option("--image", metavar="IMAGE", help="The image to run it in; its language's unless set.")
@click.option("--name", metavar="NAME", help="What the run is called; the file's name unless set.")
@click.option("--agent-label", "labels", multiple=True, metavar="LABEL", help="What its agent must have; as `agent:`.")
@options.duration_option("--timeout", "timeout_s", "How long it may run; 1h unless set.")
@click.option("--retry", type=click.IntRange(0, limits.RETRY_MAX), default=0, help="More tries of one that fails.")
@click.option(
    "--stdin/--no-stdin", "has_stdin", default=None, help="Give it standard input; a file or a pipe unless set."
)
@click.option("--document", "is_shown", is_flag=True, help="Print the definition that it is, and run nothing.")
@manner_options
@click.option("-v", "--verbose", count=True, help="Say more on stderr.")
@options.client_options
def script_verb(
    *,
    file: str,
    args: tuple[str, ...],
    pairs: tuple[str, ...],
    labels: tuple[str, ...],
    timeout_s: float | None,
    has_stdin: bool | None,
    is_shown: bool,
    manner: Manner,
    verbose: int,
    config: Config[ClientConfig],
    **given: Any,
) -> int:
    """Run a script: in its language's image, in a sandbox, wherever the cluster has a place for it.

    What it prints comes out here, stdout and stderr apart and as it is, and its exit code is this command's. FILE `-`
    is the script on standard input; else standard input is the script's if it is a file or a pipe, up to 1 MiB of it.
    Options stand before FILE: what follows it is the script's. 124: it ran too long; 3: it was cancelled; 1, said on
    stderr: it did not come to run. Ctrl-C detaches: the run goes on.
    """
    from pistage.cli.serve import start_logging

    start_logging(verbose, quiet=True, is_brief=True)
    _refuse_undecodable(args)
    code, name = _code(file)
    body = {key: value for key, value in given.items() if value} | {"script": code, "file": name, "args": list(args)}
    body["env"] = documents.parameters(pairs, None, flag="--env")
    body["agent"] = list(labels)
    body["timeout"] = None if timeout_s is None else f"{timeout_s:g}s"
    if data := b"" if file == "-" else _standard_input(has_stdin):
        body["stdin"] = {"base64": base64.b64encode(data).decode()}
    body = {key: value for key, value in body.items() if value not in (None, [], {})}
    if is_shown:
        from pistage.core.definition import script_document

        click.echo(script_document(code, {key: value for key, value in body.items() if key != "script"}))
        return 0
    screen = ScriptScreen(has_notes=bool(verbose or given["image"]))
    return groups.run(_run(config, file, body, replace(manner, screen=screen), is_verbose=verbose > 0))


async def _run(
    config: Config[ClientConfig], file: str, body: dict[str, Any], manner: Manner, *, is_verbose: bool
) -> int:
    async with connect(config, needs_agent=True, may_found=True, runtime=manner.runtime) as connection:
        refuse_unless_it_may_leave(connection, manner)
        with documents.named(file):
            run = await connection.client.submit_script(body)
        for finding in run.get("warnings") or []:
            output.say(findings.line(finding, file), fg="yellow")
        title = f"{run['name']}#{run['number']}"
        if manner.is_detached:
            click.echo(run["id"])
            output.say(f"follow it: pistage watch {shlex.quote(title)}")
            return 0
        if is_verbose:
            output.say(f"run {title} {run['id']}")
        return _say_end(await followed(connection, run, manner), is_verbose=is_verbose)


def _say_end(run: Run, *, is_verbose: bool) -> int:
    """The exit code that the script left; what is not the script's own doing is said."""
    title = f"{run['name']}#{run['number']}"
    last = ((run.get("tasks") or [{}])[-1].get("attempts") or [{}])[-1]
    code, reason = last.get("exit_code"), last.get("reason") or run.get("reason") or run["state"]
    if run["state"] == "failed" and last.get("failure") in {"failure", "oom"} and code:
        is_its_own = last["failure"] == "failure" and f"exit code {code}" in reason
        if not is_its_own or is_verbose or sys.stderr.isatty():
            output.say(f"{title}: {reason}", fg=None if is_its_own else "red")
        return int(code)
    if run["state"] != "succeeded" or is_verbose:
        output.say(f"{title}: {reason}", fg="red" if run["state"] != "succeeded" else None)
    is_late = run["state"] == "failed" and last.get("failure") == "timeout"
    return TIMED_OUT if is_late else EXIT_CODES.get(run["state"], 1)


def _code(file: str) -> tuple[str, str]:
    """The script's text, and its name as far as one can be told: the master never learns a path."""
    path = Path(file)
    try:
        with _opened(file) as stream:
            data = stream.read(limits.SCRIPT_BYTES_MAX + 1)
    except OSError as error:
        raise PistageError(Code.NOT_FOUND, f"cannot read {_shown(file)}: {error.strerror}") from None
    if len(data) > limits.SCRIPT_BYTES_MAX:
        raise PistageError(
            Code.TOO_LARGE, f"{_shown(file)} has more than {limits.SCRIPT_BYTES_MAX:,} bytes",
            hint="a script is one file of code; data goes to its standard input, or into files",
        )  # fmt: skip
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PistageError(
            Code.INVALID, f"{_shown(file)} is not UTF-8 text: byte {error.start:,} cannot stand there"
        ) from None
    if "\0" in text:
        raise PistageError(
            Code.INVALID, f"{_shown(file)} holds a NUL character, byte {data.index(0):,}: it is no script"
        )
    is_tellable = file != "-" and path.name.isprintable() and len(path.name) <= limits.NAME_CHARS_MAX
    return text, path.name if is_tellable else f"script{path.suffix if path.suffix.isascii() else ''}"


def _opened(file: str) -> BinaryIO:
    return os.fdopen(os.dup(0), "rb") if file == "-" else Path(file).open("rb")


def _standard_input(has_stdin: bool | None) -> bytes:
    """What the script is to read. Without a word only what has an end of its own: a file, or a pipe."""
    if has_stdin is None:
        try:
            mode = os.fstat(0).st_mode
        except OSError:  # closed
            return b""
        has_stdin = stat.S_ISREG(mode) or stat.S_ISFIFO(mode)
    if not has_stdin:
        return b""
    said = threading.Timer(_SLOW_S, output.say, ["waiting for the end of standard input (--no-stdin: give it none)"])
    said.daemon = True
    said.start()
    try:
        with _opened("-") as stream:
            data = stream.read(limits.SCRIPT_BYTES_MAX + 1)
    finally:
        said.cancel()
    if len(data) > limits.SCRIPT_BYTES_MAX:
        raise PistageError(
            Code.TOO_LARGE, f"standard input has more than {limits.SCRIPT_BYTES_MAX:,} bytes",
            hint="put data where the script can fetch it, or give it none: --no-stdin",
        )  # fmt: skip
    return data


def _refuse_undecodable(args: tuple[str, ...]) -> None:
    for number, word in enumerate(args, 1):
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise PistageError(Code.USAGE, f"argument {number} is not UTF-8 text: {word!a}") from None


def _shown(file: str) -> str:
    """The file's name on one line, whatever bytes it has."""
    return "standard input" if file == "-" else file.encode("utf-8", "replace").decode()
