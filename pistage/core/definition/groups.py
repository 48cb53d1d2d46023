"""Groups: each root group of a Pistages document becomes a task (P2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pistage.core import limits
from pistage.core.definition.admission import admitted_to_run
from pistage.core.definition.building import TaskBuilder
from pistage.core.definition.concurrency import concurrency_field
from pistage.core.definition.conditions import verdict_of
from pistage.core.definition.counting import Counter
from pistage.core.definition.expansion import Expander, Use
from pistage.core.definition.graph import Needs, needs_of
from pistage.core.definition.library import Library
from pistage.core.definition.pistages import Definition, GroupSource
from pistage.core.definition.reservation import reservation_of
from pistage.core.definition.retries import check_growth
from pistage.core.definition.scope import Renderer, Scope
from pistage.core.plan import Block, Concurrency, Network, OnPartition, Retry, Task, Volume, When


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """The tasks of a document's groups, and what they need beside them."""

    tasks: tuple[Task, ...]
    needs: Needs
    networks: Mapping[str, Network]
    volumes: Mapping[str, Volume]
    images_missing: list[str]
    concurrency: Concurrency | None


def plan_groups(definition: Definition, given: Scope, library: Library, renderer: Renderer) -> Grouped:
    """The tasks of `definition` at the root, with the parameters given to the run."""
    page = definition.page
    Counter(library).check(definition)
    needs = needs_of(definition.groups, page)
    given = admitted_to_run(definition.inputs, given, page, renderer)
    scope = renderer.defaults(definition.with_, given, page, "with of the definition")
    concurrency = _concurrency(definition, scope, renderer)
    expander = Expander(library, renderer)
    verdict = verdict_of(definition.when, scope, renderer, page)
    is_skipped = verdict.skip_reason is not None
    use = Use(definition=definition, scope=replace(scope, is_skipped=is_skipped), skip_reason=verdict.skip_reason)
    use = expander.settled(use)
    tasks = tuple(_task(expander, use, group, needs[group.name], verdict.when) for group in definition.groups)
    return Grouped(
        tasks=tasks,
        needs=needs,
        networks=expander.networks,
        volumes=expander.volumes,
        images_missing=expander.images_missing,
        concurrency=concurrency,
    )


def _concurrency(definition: Definition, scope: Scope, renderer: Renderer) -> Concurrency | None:
    """The group may be named after what the run is given: `deploy-{{ .env }}`."""
    node = definition.node.get("concurrency")
    rendered = None if node is None else renderer.node(node, scope, definition.page)
    return concurrency_field(definition.page, rendered, definition.name)


def _task(expander: Expander, use: Use, group: GroupSource, needs: tuple[str, ...], when: When | None) -> Task:
    builder = TaskBuilder(expander.budget)
    expanded = expander.group(use, group, builder)
    settings = expanded.settings
    body = Block(kind="sequence", name=group.name, children=expanded.children)
    contexts = tuple(builder.contexts)
    # In lint a parameter or an action that is not known yet may bring the memory limit.
    if not expander.renderer.needed and not expander.library.missing:
        check_growth(use.definition.page, settings.retry, group.name, contexts)
    return Task(
        name=group.name,
        body=body,
        contexts=contexts,
        needs=needs,
        when=expanded.verdict.when or when or When.SUCCESS,
        skip_reason=use.skip_reason or expanded.verdict.skip_reason,
        services=tuple(builder.services.values()),
        constraints=tuple(builder.constraints),
        resources=reservation_of(body, contexts),
        retry=settings.retry.task if settings.retry else Retry(),
        timeout_s=settings.timeout_s or limits.TASK_TIMEOUT_DEFAULT_S,
        queue_timeout_s=settings.queue_timeout_s,
        on_partition=settings.on_partition or OnPartition.KILL,
    )
