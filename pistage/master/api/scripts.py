"""A script as it comes in a request -> the definition that it is; and the languages as the configuration has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from pistage.config import MasterConfig
from pistage.core import limits
from pistage.core.definition import Finding, script_document
from pistage.core.languages import DEFAULTS, Language, merged
from pistage.errors import PistageError
from pistage.master.api import bodies
from pistage.master.api.submissions import Submission, finding_view

_EXPECTED = '{"script": code} and beside it any of language, file, args, stdin, requirements, env, timeout, …'


class _Script(bodies.Body):
    """The keys of a definition with `script` alone. That their values are right is for the planner to say."""

    script: str = Field(max_length=limits.SCRIPT_BYTES_MAX)
    name: str | None = None
    file: str | None = None
    language: str | None = None
    args: list[Any] = Field(default_factory=list)
    stdin: str | dict[str, Any] | None = None
    requirements: list[Any] = Field(default_factory=list)
    env: dict[str, Any] = Field(default_factory=dict)
    image: str | None = None
    timeout: str | int | float | None = None
    queue_timeout: str | int | float | None = None
    retry: int | dict[str, Any] | None = None
    workdir: str | None = None
    user: str | None = None
    resources: dict[str, Any] = Field(default_factory=dict)
    agent: str | list[Any] | dict[str, Any] | None = None
    queue: str | None = None
    priority: int | None = None


def parse_script(body: bytes) -> Submission:
    """The definition of the script in a body; PistageError `invalid` names the key that is wrong."""
    asked = bodies.parse(body, _Script, expected=_EXPECTED)
    text = script_document(asked.script, asked.model_dump(exclude={"script"}, exclude_none=True))
    return Submission(text=text, bytes_max=limits.SCRIPT_DOCUMENT_BYTES_MAX)


def keyed_view(finding: Finding) -> dict[str, Any]:
    """A finding in JSON, its place told by its key alone: nobody has seen the document that the request was made."""
    return finding_view(finding) | {"line": None, "column": None}


def keyed(error: PistageError) -> PistageError:
    """The same error, with findings as `keyed_view` has them."""
    found = error.details.get("findings")
    if not isinstance(found, list) or not found:
        return error
    findings = [finding | {"line": None, "column": None} for finding in found]
    first, *others = [finding for finding in findings if finding["severity"] == "error"] or findings
    more = f" (and {len(others)} more)" if others else ""
    message = f"{first['path']}: {first['message']}{more}"
    return PistageError(error.code, message, hint=error.hint, details=error.details | {"findings": findings})


def languages_of(settings: MasterConfig) -> Mapping[str, Language]:
    """Every language that this master knows."""
    told = {
        name: merged(name, image=one.image, command=one.command, endings=one.endings, installer=one.installer)
        for name, one in settings.languages.items()
    }
    return {**DEFAULTS, **told}
