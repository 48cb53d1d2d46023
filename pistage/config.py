"""Configuration: flags > environment > file > default, resolved once into a frozen value that knows its origins."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_type_hints
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pistage.errors import Code, PistageError

DEFAULT_PORT = 8470
DEFAULT_SERVER = f"http://127.0.0.1:{DEFAULT_PORT}"
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d)")


def _as_list(value: object) -> object:
    """Of a flag or a variable: "a, b", also in the brackets that it has in a file."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    text = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [part.strip() for part in text.split(",") if part.strip()]


def _as_mapping(value: object) -> object:
    if isinstance(value, str):
        value = _as_list(value)
    if isinstance(value, list | tuple):
        pairs = (str(item).partition("=") for item in value)
        return {key.strip(): text.strip() if equals else "true" for key, equals, text in pairs}
    if isinstance(value, dict):
        return {str(key): _as_text(item) for key, item in value.items()}
    return value


def _as_text(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_bytes(value: object) -> object:
    """ "512Mi", "2g", "1.5 GiB" -> bytes; as everywhere in this project, units are powers of 1024."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(float(match["number"]) * 1024 ** " KMGT".index(match["unit"].upper() or " "))
    return value


def _as_seconds(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match["number"]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[match["unit"]]
    return value


def _as_words(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value  # ValueError where quotes do not end


def _as_document(value: object) -> object:
    """What a flag or a variable holds of a key with structure is YAML, as it stands in a file."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None


def _checked_url(value: str) -> str:
    parts = urlsplit(value)  # ValueError for a host that is none
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://HOST/PATH or https://HOST/PATH")
    return value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Words = Annotated[tuple[str, ...], BeforeValidator(_as_words)]
Endings = Annotated[tuple[Annotated[str, Field(pattern=r"^\.?[A-Za-z0-9]{1,10}$")], ...], BeforeValidator(_as_list)]
Labels = Annotated[dict[str, str], BeforeValidator(_as_mapping)]
Bytes = Annotated[int, BeforeValidator(_as_bytes), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(_as_seconds), Field(gt=0)]
Wait = Annotated[float, BeforeValidator(_as_seconds), Field(ge=0)]  # 0: not at all


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interpretation(_Section):
    """What a master says of a language of scripts; what it leaves out is as it is without it."""

    image: str | None = Field(None, max_length=500)
    command: Words | None = None
    endings: Endings | None = None
    installer: Literal["pip", "npm", "none"] | None = None


class Interpreter(_Section):
    """What an agent says of a language of scripts: its own interpreter, and where requirements come from."""

    command: Words | None = None
    packages: Path | None = None
    index: Annotated[str, AfterValidator(_checked_url)] | None = Field(None, max_length=500)


class MasterConfig(_Section):
    """What `pistage serve --role master` needs; each description is the documentation of its key."""

    data_dir: Path = Field(Path("/var/lib/pistage/master"), description="where raft.db, the state and the logs live")
    listen: str = Field(f"127.0.0.1:{DEFAULT_PORT}", description="address and port of the one HTTP port")
    peers: Strings = Field((), description="URLs of the masters that found the cluster together; alone unless set")
    bootstrap_expect: int | None = Field(
        None, ge=1, le=9, description="how many masters found the cluster; as many as peers names unless set"
    )
    advertise: str = Field("", description="URL at which the other masters reach this one; http://LISTEN unless set")
    election_timeout: Seconds = Field(
        0.6, description="the masters look for a new leader after one to two times this without the old one"
    )
    log_entries_kept: int = Field(
        10_000, ge=0, description="a master that missed more changes than this is sent the whole state"
    )
    token: str | None = Field(None, description="the cluster token; prefer token_file", repr=False)
    token_file: Path | None = Field(None, description="file that holds the cluster token")
    heartbeat: Seconds = Field(2.0, description="how often agents say that they live")
    lease: Seconds = Field(
        20.0,
        description="an agent that no master answers for this long stops its work, and is lost a little later;"
        " the same on every master",
    )
    disk_free_min: Bytes = Field(
        256 * 1024**2, description="with less free than this, output and submissions are refused until there is more"
    )
    run_log_max: Bytes = Field(
        1024**3, description="most output kept of one run; of what its steps print then, only the end is kept"
    )
    step_log_max: Bytes = Field(1024**3, description="most output kept of one step; then only the end of it is")
    log_replicas: int = Field(
        2, ge=1, le=9, description="how many masters have output before it is acknowledged; the same on every master"
    )
    archive: str = Field(
        "",
        description="object store for output of runs that ended, for example s3://bucket/prefix; the same on every"
        " master",
    )
    archive_after: Seconds = Field(
        7 * 86400.0, description="how long after the end of a run masters keep output themselves that is in the archive"
    )
    notice_allow: Strings = Field(
        (),
        description="ranges of addresses that notices may go to beside the open internet, for example 10.0.0.0/8; the"
        " same on every master",
    )
    projects: Strings = Field(("default",), description="projects that runs and actions may name")
    languages: Annotated[dict[str, Interpretation], BeforeValidator(_as_document)] = Field(
        default_factory=dict,
        description="of scripts, by name: image, command, endings of files, installer (pip, npm or none); python,"
        " node, sh and bash are known; the same on every master",
    )


class AgentConfig(_Section):
    """What `pistage serve --role agent` needs; each description is the documentation of its key."""

    data_dir: Path = Field(Path("/var/lib/pistage/agent"), description="where the agent's id and journal live")
    masters: Strings = Field((DEFAULT_SERVER,), description="URLs of masters; one that answers is enough")
    token: str | None = Field(None, description="the cluster token; prefer token_file", repr=False)
    token_file: Path | None = Field(None, description="file that holds the cluster token")
    name: str = Field("", description="name shown to people; the host's name unless set")
    labels: Labels = Field(
        default_factory=dict, description="labels that tasks may ask for, beside os, arch, host, gpu and gpu_vendor"
    )
    runtime: Literal["docker", "sandbox", "host"] = Field("docker", description="how steps are run")
    allow_host_runtime: bool = Field(False, description="let steps run as plain processes of the agent's user")
    ignore_images: bool = Field(False, description="sandbox and host only: run steps that name an image without it")
    engine: str = Field("", description="engine socket; DOCKER_HOST, else unix:///var/run/docker.sock unless set")
    cpus: float | None = Field(None, gt=0, description="cores offered; those it may use less reserve_cpus unless set")
    reserve_cpus: float = Field(0.0, ge=0, description="cores kept from tasks, for the agent and the engine")
    memory: Bytes | None = Field(None, description="memory offered; the machine's less a reserve unless set")
    gpus: int | None = Field(None, ge=0, description="GPUs offered; those found here unless set")
    slots: int | None = Field(None, gt=0, description="tasks at one time; four a core unless set")
    bind_paths: Strings = Field((), description="directories of this host that tasks may mount; none unless set")
    stop_grace: Seconds = Field(10.0, description="between the stop signal and the kill")
    drain_timeout: Wait = Field(
        30.0, description="how long an agent that is stopped by SIGTERM waits for the work it has; it takes no more"
    )
    pull_timeout: Seconds = Field(1800.0, description="how long a pull may take")
    languages: Annotated[dict[str, Interpreter], BeforeValidator(_as_document)] = Field(
        default_factory=dict,
        description="of scripts, by name: command (the interpreter, where no image brings one), packages (a directory"
        " that requirements come from), index (a URL that they come from)",
    )
    output_wait: Seconds = Field(
        120.0, description="how long output that no master can keep may hold a step up before the step fails"
    )
    output_codec: Literal["none", "zlib", "zstd"] = Field(
        "none", description="how output is compressed on its way to the masters: for agents behind slow lines"
    )


class ClientConfig(_Section):
    """What every other verb needs; each description is the documentation of its key."""

    server: Strings = Field((), description="URLs of masters; a `pistage dev` of yours is found without it")
    token: str | None = Field(None, description="the cluster token; prefer token_file", repr=False)
    token_file: Path | None = Field(None, description="file that holds the cluster token")
    data_dir: Path = Field(
        default_factory=lambda: dev_data_dir(os.environ), description="where `dev` and a one-command `run` keep data"
    )


Section = TypeVar("Section", MasterConfig, AgentConfig, ClientConfig)


@dataclass(frozen=True, slots=True)
class Config(Generic[Section]):
    """The settings, and for each key where its value came from."""

    settings: Section
    origins: Mapping[str, str] = field(default_factory=dict)


def dev_data_dir(environ: Mapping[str, str]) -> Path:
    """Where `pistage dev` keeps its data unless told: $XDG_DATA_HOME/pistage, or ~/.local/share/pistage."""
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".local" / "share")
    return Path(base) / "pistage"


def load(
    kind: type[Section],
    *,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Config[Section]:
    """Resolve a section; a flag that is None was not given. PistageError `usage` names key, origin and expectation."""
    values: dict[str, object] = {}
    origins = dict.fromkeys(kind.model_fields, "default")
    layers = [
        (f"file {file}", _read_file(file, kind) if file else {}),
        ("environment", _from_environment(kind, os.environ if environ is None else environ)),
        ("flag", {key: value for key, value in (flags or {}).items() if value is not None}),
    ]
    for origin, layer in layers:
        for key, value in layer.items():
            values[key] = value
            origins[key] = f"environment {_variable(key)}" if origin == "environment" else origin
    try:
        return Config(kind.model_validate(values), origins)
    except ValidationError as error:
        raise _refusal(kind, error, origins) from None


def read_token(settings: MasterConfig | AgentConfig | ClientConfig) -> str | None:
    """The token itself, from `token` or `token_file`; None where neither is set."""
    if settings.token is not None:
        if not settings.token.strip():  # which anybody could show
            raise PistageError(Code.USAGE, "the token is empty", hint="set token_file, or leave token out")
        return settings.token.strip()
    if settings.token_file is None:
        return None
    try:
        token = settings.token_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise PistageError(
            Code.USAGE, f"cannot read the token file {settings.token_file}: {error.strerror}", hint="set token_file"
        ) from None
    if not token:
        raise PistageError(Code.USAGE, f"the token file {settings.token_file} is empty", hint="write a token into it")
    return token


def as_written(kind: type[BaseModel], key: str, value: object) -> object:
    """A size or a duration as people write it: 256Mi, 90s; everything else as it is."""
    match value, _unit(kind, key):
        case int(), "size":
            units = [unit for power, unit in enumerate(" KMGT") if value and value % 1024**power == 0]
            unit = units[-1] if units else " "
            return f"{value // 1024 ** ' KMGT'.index(unit)}{unit}i" if unit != " " else str(value)
        case float(), "duration":
            for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
                if value % seconds == 0:
                    return f"{value / seconds:g}{unit}"
            return f"{value:g}s"
        case _:
            return value


def split_address(listen: str) -> tuple[str, int]:
    """ "host:port", "[v6]:port" or ":port" -> host and port; PistageError `usage` otherwise."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise PistageError(Code.USAGE, f"listen: expected HOST:PORT, got {listen!r}", hint="for example 127.0.0.1:8470")
    return host.strip("[]") or "0.0.0.0", int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # any other name may mean any address, "127.example.com" too


def _unit(kind: type[BaseModel], key: str) -> Literal["size", "duration", ""]:
    hint = get_type_hints(kind, include_extras=True).get(key)
    kinds = (hint, *get_args(hint))
    if Bytes in kinds:
        return "size"
    return "duration" if Seconds in kinds or Wait in kinds else ""


def _variable(key: str) -> str:
    return f"PISTAGE_{key.upper()}"


def _from_environment(kind: type[BaseModel], environ: Mapping[str, str]) -> dict[str, object]:
    return {key: environ[_variable(key)] for key in kind.model_fields if environ.get(_variable(key))}


def _read_file(file: Path, kind: type[BaseModel]) -> dict[str, object]:
    try:
        loaded: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PistageError(Code.USAGE, f"cannot read the configuration {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PistageError(Code.USAGE, f"the configuration {file} is not YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise PistageError(Code.USAGE, f"the configuration {file} is not a mapping of keys to values")
    for key in loaded:
        if key not in kind.model_fields:
            nearest = difflib.get_close_matches(str(key), list(kind.model_fields), n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"the keys are {', '.join(kind.model_fields)}"
            raise PistageError(Code.USAGE, f"unknown key {key!r} in {file}", hint=hint)
    return {str(key): value for key, value in loaded.items() if value is not None}


def _refusal(kind: type[BaseModel], error: ValidationError, origins: Mapping[str, str]) -> PistageError:
    first = error.errors(include_url=False, include_input=False)[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    described = kind.model_fields[key].description if key in kind.model_fields else None
    wanted = {"size": "expected a size such as 512Mi", "duration": "expected a duration such as 90s or 5m"}
    message = wanted.get(_unit(kind, key)) or first["msg"]
    return PistageError(
        Code.USAGE,
        f"{'.'.join(map(str, first['loc']))} ({origins.get(key, 'unknown key')}): {message}",
        hint=f"{key}: {described}" if described else "",
    )
