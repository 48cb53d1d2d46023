"""The verb `doctor`: what of this machine Pistage needs, what is wrong with it, and how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from pistage.cli import groups, options, output, probes, terminal
from pistage.config import ClientConfig, Config
from pistage.errors import Code, PistageError

_FREE_BYTES_MIN = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at. `bad` needs mending; `note` is worth knowing."""

    name: str
    verdict: Literal["fine", "note", "bad"]
    text: str
    hint: str = ""


@click.command("doctor", short_help="Find what is wrong with this machine and say how to mend it.")
@click.option("--image", "images", multiple=True, metavar="IMAGE", help="Also see that the engine can have this image.")
@output.format_option("table", "json", "yaml")
@options.client_options
def doctor_verb(*, images: tuple[str, ...], fmt: str, config: Config[ClientConfig]) -> int:
    """Find what is wrong with this machine and say how to mend it.

    Looks at Python, the engine, the sandbox, the data directory and its disk, the server and the token. Exits 1 if
    something needs mending.
    """
    checks = groups.run(_examine(config, images))
    if fmt == "table":
        colours = {"fine": "green", "note": "yellow", "bad": "red"}
        for check in checks:
            verdict = click.style(check.verdict.ljust(4), fg=colours[check.verdict])
            click.echo(f"{verdict}  {check.name}: {terminal.one_line(check.text)}")
            if check.hint:
                click.echo(f"      {terminal.one_line(check.hint)}")
    else:
        output.print_value([asdict(check) for check in checks], fmt=fmt)
    return 1 if any(check.verdict == "bad" for check in checks) else 0


async def _examine(config: Config[ClientConfig], images: Sequence[str]) -> list[Check]:
    checks = [_python(), *_disk(config.settings.data_dir)]
    checks += [check async for check in _runtimes()]
    checks += [await _image(image) for image in images]
    checks.append(await _server(config))
    return checks


def _python() -> Check:
    return Check(name="python", verdict="fine", text=f"{platform.python_version()} at {sys.executable}")


def _disk(directory: Path) -> list[Check]:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    said = f"{output.size(free)} free for {directory}"
    if free < _FREE_BYTES_MIN:
        return [Check(name="disk", verdict="bad", text=said, hint="make room, or set --data-dir to another disk")]
    if not os.access(existing, os.W_OK):
        return [Check(name="disk", verdict="bad", text=f"cannot write to {existing}", hint="set --data-dir")]
    return [Check(name="disk", verdict="fine", text=said)]


async def _runtimes() -> AsyncIterator[Check]:
    engine, sandbox = await probes.probe_engine(), await probes.probe_sandbox()
    if engine.is_usable:
        yield Check(name="engine", verdict="fine", text=engine.reason)
    else:
        yield Check(
            name="engine",
            verdict="note" if sandbox.is_usable else "bad",
            text=engine.reason,
            hint="containers need a Docker-compatible engine: install docker.io or podman, or set DOCKER_HOST",
        )
    if sandbox.is_usable:
        yield Check(name="sandbox", verdict="fine", text=sandbox.reason)
    else:
        verdict: Literal["note", "bad"] = "note" if engine.is_usable else "bad"
        hint = "install bubblewrap, and allow unprivileged user namespaces"
        yield Check(name="sandbox", verdict=verdict, text=sandbox.reason, hint=hint)


async def _image(image: str) -> Check:
    probe = await probes.probe_image(image)
    if probe.is_usable:
        return Check(name=f"image {image}", verdict="fine", text=probe.reason)
    hint = "see that the registry can be reached, or load the image into the engine yourself"
    return Check(name=f"image {image}", verdict="bad", text=probe.reason, hint=hint)


async def _server(config: Config[ClientConfig]) -> Check:
    from pistage.cli.connect import find
    from pistage.client import Client

    try:
        found = await find(config)
        if found is None:
            text = "none configured and no `pistage dev` here: `pistage run` uses an embedded cluster"
            return Check(name="server", verdict="note", text=text)
        servers, token = found
        async with Client(servers, token) as client:
            cluster = await client.fetch_cluster()
    except PistageError as error:
        name = "token" if error.code in {Code.UNAUTHENTICATED, Code.FORBIDDEN} else "server"
        return Check(name=name, verdict="bad", text=error.message, hint=error.hint or "")
    text = f"{', '.join(servers)} answers, version {cluster.get('version')}, leader {cluster.get('leader')}"
    return Check(name="server", verdict="fine", text=text)
