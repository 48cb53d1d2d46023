"""Planning: document text -> Plan, or every finding that stands in the way; and lint, the same without parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pistage.core import limits
from pistage.core.codec import to_json
from pistage.core.definition.admission import check_scheduled
from pistage.core.definition.afters import afters_field
from pistage.core.definition.document import Document, read_document
from pistage.core.definition.fields import count_field, name_field
from pistage.core.definition.findings import Finding, Page, Report, StopError
from pistage.core.definition.graph import Needs, gangs_of, upstream_of
from pistage.core.definition.groups import plan_groups
from pistage.core.definition.library import Actions, Library, dialect_of
from pistage.core.definition.nodes import MapNode, Place, ScalarNode, shortened
from pistage.core.definition.notices import notify_field
from pistage.core.definition.pipeline import plan_pipeline
from pistage.core.definition.pistages import parse_pistages
from pistage.core.definition.schedules import Schedules, schedules_field
from pistage.core.definition.scope import Entry, Renderer, Scope, given_value
from pistage.core.definition.storage import is_name
from pistage.core.definition.values import TemplateError
from pistage.core.languages import DEFAULTS, Language
from pistage.core.plan import Concurrency, Network, Plan, Task, Volume
from pistage.core.triggers.settings import After

_QUEUE_DEFAULT = "default"
_PRIORITY_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and the warnings met on the way."""

    plan: Plan
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lint:
    """What can be said of a document without running it.

    `normalised` is its text after the repairs of R3 and R4, None where it needed none. `images_missing` are the paths
    of steps whose image must come from whoever uses the document as an action. `schedules` and `afters` say when it
    asks to be run.
    """

    findings: tuple[Finding, ...]
    normalised: str | None = None
    name: str | None = None
    dialect: str | None = None
    parameters_needed: tuple[str, ...] = ()
    images_missing: tuple[str, ...] = ()
    actions_missing: tuple[str, ...] = ()
    schedules: Schedules = field(default_factory=dict)
    afters: tuple[After, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def is_ok(self) -> bool:
        """Whether there are no errors; warnings do not count."""
        return not self.errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a dialect makes of a document: tasks not yet joined to a plan."""

    tasks: tuple[Task, ...]
    needs: Needs
    networks: Mapping[str, Network] = field(default_factory=dict)
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    schedules: Schedules = field(default_factory=dict)
    start_node: ScalarNode | None = None
    concurrency: Concurrency | None = None
    images_missing: tuple[str, ...] = ()


def make_plan(
    text: str | bytes,
    *,
    actions: Actions,
    parameters: Mapping[str, object] | None = None,
    start_node: str | None = None,
    languages: Mapping[str, Language] = DEFAULTS,
    bytes_max: int = limits.DOCUMENT_BYTES_MAX,
) -> Planned:
    """The plan of a document, with its warnings; PistageError `invalid` carries every error at once.

    `actions` looks an action up by name; `parameters` are given to the run; `start_node` overrides the document's.
    `languages` are those of scripts. `bytes_max` is what the document may have.
    """
    planner = _Planner(Report(), actions, languages, bytes_max, is_strict=True)
    plan = planner.plan(text, parameters or {}, start_node)
    if planner.report.errors or plan is None:
        raise planner.report.refusal()
    return Planned(plan=plan, findings=planner.report.warnings)


def lint(text: str | bytes, *, actions: Actions | None, languages: Mapping[str, Language] = DEFAULTS) -> Lint:
    """Everything that can be said of a document before its parameters are known; `actions` None finds no action."""
    planner = _Planner(Report(), actions, languages, limits.DOCUMENT_BYTES_MAX, is_strict=False)
    planner.plan(text, {}, None)
    document = planner.document
    return Lint(
        findings=planner.report.findings,
        normalised=document.normalised if document is not None else None,
        name=planner.name,
        dialect=planner.dialect,
        parameters_needed=tuple(sorted(planner.renderer.needed)),
        images_missing=tuple(dict.fromkeys(planner.images_missing)),
        actions_missing=tuple(sorted(planner.library.missing)),
        schedules=planner.schedules,
        afters=planner.afters,
    )


def document_name(text: str | bytes) -> str:
    """The name under which a document would be registered; PistageError `invalid` if it has errors of its own."""
    result = lint(text, actions=None)
    if result.errors or result.name is None:
        report = Report()
        for finding in result.findings:
            report.add(finding)
        raise report.refusal()
    return result.name


class _Planner:
    def __init__(
        self,
        report: Report,
        actions: Actions | None,
        languages: Mapping[str, Language],
        bytes_max: int,
        *,
        is_strict: bool,
    ) -> None:
        self.report = report
        self.renderer = Renderer(is_strict)
        self.library = Library(actions, report, is_strict, languages=languages)
        self._bytes_max = bytes_max
        self.document: Document | None = None
        self.name: str | None = None
        self.dialect: str | None = None
        self.images_missing: tuple[str, ...] = ()
        self.schedules: Schedules = {}
        self.afters: tuple[After, ...] = ()

    def plan(self, text: str | bytes, parameters: Mapping[str, object], start_node: str | None) -> Plan | None:
        """The plan, or None; the report says why. Reading the errors is the caller's part."""
        try:
            self.document = read_document(text, self.report, bytes_max=self._bytes_max)
            if self.document is None:
                return None
            page = self.report.page(None, self.document.shifts)
            root = self.document.root
            self._note_name(root)
            self.dialect = dialect_of(root, page)
            self.afters = afters_field(page, root.get("after"), self.name)
            given = self._given(parameters, page)
            parts = self._parts(root, page, given)
            return None if parts is None else self._joined(root, page, parts, start_node)
        except StopError:
            return None

    def _note_name(self, root: MapNode) -> None:
        """The name, for lint and for seeing a circle through the document itself; the dialect checks it."""
        self.name = name_field(Report().page(), root.get("name"), root)
        self.library.root_name = self.name or ""

    def _given(self, parameters: Mapping[str, object], page: Page) -> Scope:
        entries = {}
        for name, value in parameters.items():
            try:
                if value is not None:
                    entries[name] = Entry(given_value(value), "given to the run")
            except TemplateError as error:
                page.error(Place(), error.code, f"the parameter '{shortened(name)}' {error.message}")
                entries[name] = Entry("", "given to the run", is_unknown=True)
        return Scope(entries)

    def _parts(self, root: MapNode, page: Page, given: Scope) -> Parts | None:
        if self.dialect == "pipeline":
            made = plan_pipeline(root, page, given, self.renderer)
            return (
                None
                if made is None
                else Parts(
                    tasks=made.tasks,
                    needs=made.needs,
                    networks=made.networks,
                    volumes=made.volumes,
                    schedules={} if made.schedule is None else {self.name or "": made.schedule},
                    start_node=made.start_node,
                    concurrency=made.concurrency,
                )
            )
        definition = parse_pistages(root, page) if self.dialect == "pistages" else None
        if definition is None:
            return None
        grouped = plan_groups(definition, given, self.library, self.renderer)
        self.images_missing = tuple(grouped.images_missing)
        check_scheduled(definition.inputs, root.get("schedule"), page, self.renderer)
        return Parts(
            tasks=grouped.tasks,
            needs=grouped.needs,
            networks=grouped.networks,
            volumes=grouped.volumes,
            concurrency=grouped.concurrency,
            schedules=schedules_field(
                page, root.get("schedule"), self.name or "", has_group=grouped.concurrency is not None
            ),
        )

    def _joined(self, root: MapNode, page: Page, parts: Parts, start_node: str | None) -> Plan | None:
        self.schedules = parts.schedules
        start, at = (start_node, Place()) if start_node is not None else _start_of(parts)
        priority, queue = self._placement(root, page)
        notify = notify_field(page, root.get("notify"))
        if len(parts.tasks) > limits.PLAN_TASKS_MAX:
            page.error(root, "plan-too-large", f"the plan has more than {limits.PLAN_TASKS_MAX} tasks", "take it apart")
        tasks = self._started(parts, start, at, page)
        if self.report.errors or self.name is None or self.dialect is None:
            return None
        gangs = gangs_of(tasks)
        plan = Plan(
            name=self.name,
            dialect="pistages" if self.dialect == "pistages" else "pipeline",
            tasks=tuple(replace(task, gang=gangs.get(task.name)) for task in tasks),
            networks=_used_networks(tasks, parts.networks),
            volumes=_used_volumes(tasks, parts.volumes),
            pins=tuple(pin for _, pin in sorted(self.library.pins.items())),
            start_node=start,
            priority=priority,
            queue=queue,
            concurrency=parts.concurrency,
            notify=notify,
        )
        if self.renderer.is_strict and len(to_json(Plan, plan).encode()) > limits.PLAN_BYTES_MAX:
            page.error(
                root, "plan-too-large", f"the plan is larger than {limits.PLAN_BYTES_MAX} bytes", "take it apart"
            )
        return plan

    def _placement(self, root: MapNode, page: Page) -> tuple[int, str]:
        priority = count_field(page, root.get("priority"), "priority", _PRIORITY_MAX) or 0
        node = root.get("queue")
        queue = name_field(page, node, root, "queue") if node is not None else None
        is_fine = queue is not None and node is not None and is_name(page, node, queue, "queue")
        return priority, queue if queue is not None and is_fine else _QUEUE_DEFAULT

    def _started(self, parts: Parts, start: str | None, at: Place, page: Page) -> tuple[Task, ...]:
        """J5: with a start, all that it depends on is skipped; unrelated tasks still run."""
        if start is None:
            return parts.tasks
        if start not in parts.needs:
            names = ", ".join(shortened(name, 40) for name in list(parts.needs)[:20])
            page.error(at, "unknown-start", f"there is no task '{shortened(start)}' to start at", f"there are {names}")
            return parts.tasks
        upstream = upstream_of(start, parts.needs)
        reason = f"the run starts at '{start}', which comes after it"
        return tuple(
            replace(task, skip_reason=task.skip_reason or reason) if task.name in upstream else task
            for task in parts.tasks
        )


def _start_of(parts: Parts) -> tuple[str | None, Place]:
    return (parts.start_node.text, parts.start_node) if parts.start_node is not None else (None, Place())


def _used_networks(tasks: tuple[Task, ...], declared: Mapping[str, Network]) -> tuple[Network, ...]:
    """The declared networks, and those that a step joins without a declaration."""
    used = [joined.network for task in tasks for context in task.contexts for joined in context.networks]
    implicit = {name: Network(name=name) for name in used if name not in declared}
    return (*declared.values(), *implicit.values())


def _used_volumes(tasks: tuple[Task, ...], declared: Mapping[str, Volume]) -> tuple[Volume, ...]:
    mounts = [mount for task in tasks for context in task.contexts for mount in context.mounts]
    used = [mount.source for mount in mounts if mount.kind == "volume"]
    implicit = {name: Volume(name=name) for name in used if name not in declared}
    return (*declared.values(), *implicit.values())
