"""Program: a script as files and words, wherever it runs; and the words that bring its requirements.

The text becomes a file, and so does what it reads, so neither is bounded by what a command line takes; the words that
run it are the interpreter's, the file and the arguments, and no shell reads any of them. Names of files are ours.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pistage.agent.runtimes.base import ExecutionError
from pistage.config import AgentConfig, Interpreter
from pistage.core.languages import Installer
from pistage.core.plan import FailureClass, Program

#: What a script sees of these, where it has a root directory of its own.
ROOT = "/pistage"
PACKAGES = f"{ROOT}/packages"
INDEX = f"{ROOT}/index"
_STDIN = "stdin"
_TAIL_LINES = 6
_TAIL_CHARS = 1_200
_TARBALL = re.compile(r"(?P<name>.+?)-(?P<version>\d[0-9A-Za-z.+-]*)\.tgz")


def files_of(program: Program) -> dict[str, bytes]:
    """What has to be in its directory, by name."""
    files = {f"script{program.ending}": program.text.encode()}
    return files | ({_STDIN: base64.b64decode(program.stdin)} if program.stdin else {})


def words_of(program: Program, command: Sequence[str], directory: str) -> list[str]:
    """The words that run what `files_of` has put into `directory`."""
    words = [*command, f"{directory}/script{program.ending}", *program.args]
    # The shell opens a file whose name is ours; what it executes are words that it does not look into.
    return ["/bin/sh", "-c", 'exec "$@" <"$0"', f"{directory}/{_STDIN}", *words] if program.stdin else words


def variables_of(program: Program, env: Mapping[str, str], packages: str) -> dict[str, str]:
    """The environment with which it finds its requirements, if it has any, in the directory `packages`."""
    if not program.requirements or program.installer is not Installer.PIP:
        return dict(env)
    return {**env, "PYTHONPATH": f"{packages}:{env['PYTHONPATH']}" if env.get("PYTHONPATH") else packages}


def links_of(program: Program, packages: str) -> dict[str, str]:
    """The links in its directory, by name: Node looks for modules beside the script that imports them."""
    has_modules = bool(program.requirements) and program.installer is Installer.NPM
    return {"node_modules": f"{packages}/node_modules"} if has_modules else {}


def archive_of(program: Program, directory: str, packages: str) -> bytes:
    """A tar with its directory, to be unpacked at the root: readable by all, writable by its owner, who is root."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        parts = directory.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            tar.addfile(_member("/".join(parts[:count]), tarfile.DIRTYPE, 0o755))
        for name, content in files_of(program).items():
            member = _member(f"{directory.strip('/')}/{name}", tarfile.REGTYPE, 0o644)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in links_of(program, packages).items():
            member = _member(f"{directory.strip('/')}/{name}", tarfile.SYMTYPE, 0o777)
            member.linkname = target
            tar.addfile(member)
    return packed.getvalue()


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode = kind, mode
    return member


# --- requirements ------------------------------------------------------------------------------------------


def source_of(settings: AgentConfig, program: Program) -> Interpreter:
    """What the configuration says of the language; where requirements come from is a part of that."""
    return settings.languages.get(program.language) or Interpreter()


def packages_key(program: Program, where: Sequence[str], source: Interpreter) -> str:
    """What tells sets of packages apart: all that has a part in what is installed. `where` is image or interpreter."""
    parts = [program.installer, *where, str(source.packages or ""), source.index or "", *sorted(program.requirements)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def install_words(
    program: Program, command: Sequence[str], source: Interpreter, *, packages: str, index: str
) -> list[str]:  # fmt: skip
    """The words that install its requirements into `packages`; `index` is where `source.packages` is seen.

    ExecutionError where the configured directory does not have what it asks for.
    """
    match program.installer:
        case Installer.PIP:
            words = [*command, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
            words += ["--no-cache-dir", "--target", packages]
            if source.packages is not None:
                words += ["--no-index", "--find-links", index]
            elif source.index:
                words += ["--index-url", source.index, *_trusted(source.index)]
            return [*words, "--", *program.requirements]
        case Installer.NPM:
            words = ["npm", "install", "--no-save", "--no-fund", "--no-audit", "--no-update-notifier"]
            words += ["--loglevel=error", "--cache", "/tmp/npm", "--prefix", packages]
            if source.packages is not None:
                names = [tarball_of(source.packages, one) for one in program.requirements]
                return [*words, "--offline", "--", *(f"{index}/{name}" for name in names)]
            words += ["--registry", source.index] if source.index else []
            return [*words, "--", *program.requirements]
        case None:
            raise ExecutionError(FailureClass.REFUSED, f"nothing installs requirements of {program.language}")


def _trusted(index: str) -> list[str]:
    """Of an index without TLS, which pip passes over in silence unless told that its host is meant."""
    parts = urlsplit(index)
    return ["--trusted-host", parts.netloc.rpartition("@")[2]] if parts.scheme == "http" else []


def tarball_of(directory: Path, requirement: str) -> str:
    """The file that `npm pack` made of a package, by `name` (the newest) or `name@version`; npm itself asks a registry.

    ExecutionError if there is none.
    """
    at = requirement.find("@", 1)
    name, wanted = (requirement, "") if at < 0 else (requirement[:at], requirement[at + 1 :])
    flat = name.removeprefix("@").replace("/", "-")
    try:
        found = [match for file in directory.iterdir() if (match := _TARBALL.fullmatch(file.name))]
    except OSError as error:
        raise unreadable(directory, error) from None
    fitting = [match for match in found if match["name"] == flat and wanted in ("", match["version"])]
    if not fitting:
        raise ExecutionError(
            FailureClass.FAILURE,
            f"its requirements could not be installed: the agent's directory of packages has no {flat}-"
            f"{wanted or '<version>'}.tgz, and names and exact versions are all that is found there",
        )
    return max(fitting, key=lambda match: _release(match["version"])).string


def _release(version: str) -> tuple[tuple[int, ...], bool, str]:
    number, dash, rest = version.partition("-")
    return tuple(int(part) for part in re.findall(r"\d+", number)), not dash, rest


def unreadable(directory: Path, error: OSError) -> ExecutionError:
    """The configured directory of packages cannot be read."""
    reason = f"the agent's directory of packages {directory} cannot be read: {error.strerror}"
    return ExecutionError(FailureClass.FAILURE, reason)


def failed_install(program: Program, exit_code: int, output: bytes) -> ExecutionError:
    """Its requirements could not be installed, and the last that the installer said."""
    lines = [line.rstrip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    said = "\n".join(lines[-_TAIL_LINES:])[-_TAIL_CHARS:]
    reason = f"its requirements could not be installed ({program.installer} ended with exit code {exit_code}): {said}"
    return ExecutionError(FailureClass.FAILURE, reason)
