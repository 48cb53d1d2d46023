"""Building: a task while it is made (its containers, step ids, sidecars), and the budget that bounds the whole plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pistage.core import limits
from pistage.core.definition.findings import Page, StopError
from pistage.core.definition.nodes import Place
from pistage.core.definition.settings import Settings
from pistage.core.plan import Constraint, Context, RegistryAuth, Service, Step

_STEP_BYTES = 400  # of a step in JSON, before its own texts


@dataclass(slots=True)
class Budget:
    """What a plan may still grow by; spent during expansion, so that a small document cannot make a huge plan."""

    steps: int = limits.PLAN_STEPS_MAX
    bytes: int = limits.PLAN_BYTES_MAX

    def spend_step(self, step: Step, page: Page, at: Place) -> None:
        """One more step."""
        self.steps -= 1
        texts = (
            step.name,
            step.script or "",
            *step.reentry,
            *step.failed,
            *(step.command or ()),
            *(step.entrypoint or ()),
            *((step.program.text, step.program.stdin, *step.program.args) if step.program else ()),
        )
        size = sum(len(text) for text in texts) + _size_of(step.env)
        size += sum(len(each.name) + len(each.value) + len(each.origin) + 40 for each in step.parameters)
        self.bytes -= size + _STEP_BYTES
        if self.steps < 0:
            page.error(at, "plan-too-large", f"the plan has more than {limits.PLAN_STEPS_MAX} steps", _SPLIT)
            raise StopError
        if self.bytes < 0:
            page.error(at, "plan-too-large", f"the plan is larger than {limits.PLAN_BYTES_MAX} bytes", _SPLIT)
            raise StopError


_SPLIT = "take the work apart into several runs"


def _size_of(env: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) + 6 for name, value in env.items())


@dataclass(slots=True)
class TaskBuilder:
    """Collects what the steps of one task bring with them."""

    budget: Budget
    contexts: list[Context] = field(default_factory=list)
    services: dict[str, Service] = field(default_factory=dict)
    constraints: dict[Constraint, None] = field(default_factory=dict)
    _steps: int = 0

    def next_id(self) -> str:
        """The id of the next step: "1", "2", … in the order of the document."""
        self._steps += 1
        return str(self._steps)

    def new_context(
        self, image: str, settings: Settings, auth: RegistryAuth | None = None, *, language: str | None = None
    ) -> str:
        """A container of its own for what follows; its id."""
        context = Context(
            id=f"c{len(self.contexts) + 1}",
            image=image,
            language=language,
            auth=auth,
            resources=settings.resources,
            networks=settings.networks,
            mounts=settings.mounts,
        )
        self.contexts.append(context)
        return context.id

    def add_constraints(self, constraints: tuple[Constraint, ...] | None) -> None:
        """Demands on the agent: all of a task's must hold, for it is placed whole."""
        self.constraints.update(dict.fromkeys(constraints or ()))

    def add_services(self, services: tuple[Service, ...], page: Page, at: Place) -> None:
        """Sidecars that a step needs; the same one may be asked for by several."""
        for service in services:
            if self.services.setdefault(service.name, service) != service:
                page.error(
                    at,
                    "service-conflict",
                    f"two steps of one task ask for different services called '{service.name}'",
                    "rename one of them",
                )
