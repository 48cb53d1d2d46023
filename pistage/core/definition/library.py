"""Library: the actions that a document uses, looked up once each, parsed and pinned by the hash of their text (P3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from pistage.core import limits
from pistage.core.definition.document import read_document
from pistage.core.definition.fields import LATER
from pistage.core.definition.findings import Page, Report
from pistage.core.definition.nodes import MapNode, ScalarNode, shortened
from pistage.core.definition.pistages import Definition, parse_pistages
from pistage.core.languages import DEFAULTS, Language
from pistage.core.plan import Pin


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionText:
    """A registered or predefined action: its document, and which version of it. Predefined ones have version 0."""

    name: str
    text: str
    version: int
    sha256: str = ""  # of the text; worked out where it is not given
    is_predefined: bool = False


Actions = Callable[[str], ActionText | None]

_PISTAGES = ("uses", "run", "script")
_PIPELINE = ("pipelineTasks", "pipeline")
_RUNS = ("command", "entrypoint", "dep")


def dialect_of(root: MapNode, page: Page) -> str | None:
    """`pistages` or `pipeline`, by the document's shape; None after an error."""
    keys = [key for key in (*_PISTAGES, *_PIPELINE) if key in root.entries]
    present = [key for key in keys if root.get(key) is not None] or keys[:1]
    if len(present) > 1:
        page.error(
            root.keys[present[1]],
            "two-dialects",
            f"a definition has one of {', '.join(_PISTAGES + _PIPELINE)}, not both '{present[0]}' and '{present[1]}'",
            f"take one of them out, or put the '{present[1]}' into a group of 'uses'"
            if present[0] == "uses" and present[1] in _PISTAGES
            else "keep one of them",
        )
        return None
    if present:
        return "pistages" if present[0] in _PISTAGES else "pipeline"
    if any(root.get(key) is not None for key in _RUNS):
        return "pistages"
    later = [key for key in root.keys if key in LATER]
    if later:
        page.error(root.keys[later[0]], "not-yet", f"'{later[0]}' is not supported yet", "write the work as 'run'")
    else:
        page.error(
            root,
            "no-dialect",
            "a definition needs 'run' or 'uses' (Pistages), or 'pipelineTasks' (pipeline JSON)",
            "write 'run: …' with a command, or 'uses:' with groups of steps",
        )
    return None


@dataclass(slots=True)
class Library:
    """Where a plan finds actions. With `is_strict` false, as in lint, one that is not there is only a warning."""

    actions: Actions | None
    report: Report
    is_strict: bool
    root_name: str = ""
    languages: Mapping[str, Language] = field(default_factory=lambda: DEFAULTS)
    pins: dict[str, Pin] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    _definitions: dict[str, Definition | None] = field(default_factory=dict)

    def definition_of(self, dep: ScalarNode, page: Page, chain: tuple[str, ...]) -> Definition | None:
        """The action that `dep` names, inside the actions of `chain`; None after a finding."""
        name = dep.text
        if name in chain:
            self._refuse_cycle(dep, page, (*chain[chain.index(name) :], name))
            return None
        if len(chain) >= limits.DEP_DEPTH_MAX:
            page.error(
                dep,
                "dep-too-deep",
                f"actions depend on each other more than {limits.DEP_DEPTH_MAX} deep: {_chained((*chain, name))}",
                "make the chain shorter",
            )
            return None
        if name not in self._definitions:
            self._definitions[name] = self._load(dep, page, chain)
        elif name in self.missing:
            self._note_missing(dep, page, chain)
        return self._definitions[name]

    def _load(self, dep: ScalarNode, page: Page, chain: tuple[str, ...]) -> Definition | None:
        name = dep.text
        found = self.actions(name) if self.actions is not None else None
        if found is None:
            self.missing[name] = None
            self._note_missing(dep, page, chain)
            return None
        self.pins[name] = Pin(
            name=found.name,
            version=found.version,
            sha256=found.sha256 or sha256(found.text.encode()).hexdigest(),
            is_predefined=found.is_predefined,
        )
        return self._parse(found, dep, page)

    def _parse(self, found: ActionText, dep: ScalarNode, page: Page) -> Definition | None:
        document = read_document(found.text, self.report, action=found.name)
        if document is None:
            return None
        inside = self.report.page(found.name, document.shifts)
        dialect = dialect_of(document.root, inside)
        if dialect == "pipeline":
            page.error(
                dep,
                "dep-on-pipeline",
                f"'{shortened(found.name)}' is a pipeline with tasks; a 'dep' names an action with 'run' or 'uses'",
                "run that pipeline by itself",
            )
        return parse_pistages(document.root, inside) if dialect == "pistages" else None

    def _note_missing(self, dep: ScalarNode, page: Page, chain: tuple[str, ...]) -> None:
        name = dep.text
        if name == self.root_name:
            self._refuse_cycle(dep, page, (name, *chain, name))
            return
        via = f" (needed by {_chained(chain)})" if chain else ""
        if self.is_strict:
            page.error(
                dep,
                "unknown-action",
                f"there is no action '{shortened(name)}'{via}",
                "register it, or correct the name",
            )
        else:
            page.warn(
                dep,
                "unknown-action",
                f"the action '{shortened(name)}' was not found{via}",
                "register it before the run",
            )

    def _refuse_cycle(self, dep: ScalarNode, page: Page, chain: tuple[str, ...]) -> None:
        page.error(dep, "dep-cycle", f"actions depend on each other in a circle: {_chained(chain)}", "break the circle")


def _chained(names: tuple[str, ...]) -> str:
    return " -> ".join(shortened(name, 40) for name in names)
