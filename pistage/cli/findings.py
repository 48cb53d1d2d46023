"""What lint has to say about a document, as lines for people: file:line:column: severity: message (hint)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from pistage.cli import terminal
from pistage.errors import PistageError

Finding = Mapping[str, Any]


def of(error: PistageError) -> list[Finding]:
    """The findings that travel with an error about a definition."""
    found = error.details.get("findings")
    return plain(found) if isinstance(found, list | tuple) else []


def plain(found: Sequence[Any]) -> list[Finding]:
    """Findings of `core.definition` or of the API, as mappings."""
    return [asdict(item) if is_dataclass(item) and not isinstance(item, type) else item for item in found]


def line(finding: Finding, file: str = "") -> str:
    """One finding on one line; what is unknown is left out."""
    action = finding.get("action")
    origin = f"action {action}" if action else str(file or "definition")
    numbers = [str(finding[key]) for key in ("line", "column") if finding.get(key)]
    where = ":".join([origin, *numbers])
    path = f" {finding['path']}:" if finding.get("path") else ""
    hint = f" ({finding['hint']})" if finding.get("hint") else ""
    severity = finding.get("severity", "error")
    return terminal.one_line(f"{where}: {severity}:{path} {finding.get('message', '')}{hint}")


def has_error(found: Sequence[Finding]) -> bool:
    return any(str(finding.get("severity")) == "error" for finding in found)


def verdict(found: Sequence[Finding], file: str) -> str:
    """What is to be said after the findings themselves."""
    count = sum(str(finding.get("severity")) == "error" for finding in found)
    what = "from stdin" if file == "-" else file or "the definition"
    return f"{what} was refused: {count} error{'s' if count > 1 else ''}"
