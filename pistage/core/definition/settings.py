"""Settings: the keys that a definition, a group and a step share; nearest wins, variables and places one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pistage.core.definition.environment import environment_field
from pistage.core.definition.fields import (
    check_keys,
    choice_field,
    count_field,
    duration_field,
    map_field,
    measure_field,
    text_field,
    word_field,
    wrong_kind,
)
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import Kind, ListNode, MapNode, Node, ScalarNode, is_true, shortened
from pistage.core.definition.retries import RetryAsked, retry_field
from pistage.core.definition.services import services_field
from pistage.core.definition.storage import attachments_field, is_path, mounts_field
from pistage.core.definition.units import (
    bytes_of,
    constraint_of,
    constraints_in,
    is_label,
    is_label_value,
    milli_of,
)
from pistage.core.plan import Attachment, Constraint, Mount, OnPartition, Resources, Service

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the shared keys say at one place; None or empty where they say nothing."""

    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    on_partition: OnPartition | None = None
    retry: RetryAsked | None = None
    cpus_milli: int | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    constraints: tuple[Constraint, ...] | None = None
    mounts: tuple[Mount, ...] = ()
    networks: tuple[Attachment, ...] = ()
    services: tuple[Service, ...] = ()

    @property
    def tries(self) -> int | None:
        """The number in `retry`, for a step."""
        return None if self.retry is None else self.retry.limit

    @property
    def resources(self) -> Resources:
        return Resources(cpus_milli=self.cpus_milli, memory_bytes=self.memory_bytes, gpus=self.gpus or 0)

    def over(self, far: Settings) -> Settings:
        """These settings above those from further away."""
        if far == _NONE:
            return self
        return Settings(
            env={**far.env, **self.env},
            workdir=_first(self.workdir, far.workdir),
            user=_first(self.user, far.user),
            timeout_s=_first(self.timeout_s, far.timeout_s),
            queue_timeout_s=_first(self.queue_timeout_s, far.queue_timeout_s),
            on_partition=_first(self.on_partition, far.on_partition),
            retry=_first(self.retry, far.retry),
            cpus_milli=_first(self.cpus_milli, far.cpus_milli),
            memory_bytes=_first(self.memory_bytes, far.memory_bytes),
            gpus=_first(self.gpus, far.gpus),
            constraints=_first(self.constraints, far.constraints),
            mounts=tuple({mount.target: mount for mount in (*far.mounts, *self.mounts)}.values()),
            networks=tuple({joined.network: joined for joined in (*far.networks, *self.networks)}.values()),
            services=tuple({service.name: service for service in (*far.services, *self.services)}.values()),
        )


_NONE = Settings()


def _first(near: T | None, far: T | None) -> T | None:
    return far if near is None else near


def parse_settings(node: MapNode, page: Page, *, declares: bool = False, of_step: bool = False) -> Settings:
    """The settings in a mapping whose templates are rendered; keys that are not settings are passed over.

    `declares` is said of a definition, whose `volumes` and `networks` may also declare; `of_step` of a step, which
    cannot say how its task waits for an agent or what becomes of it there.
    """
    if not node.entries:
        return _NONE
    cpus_milli, memory_bytes, gpus = _resources(node.get("resources"), page)
    return Settings(
        env=environment_field(page, node.get("env"), "env"),
        workdir=directory_field(page, node.get("workdir"), "workdir"),
        user=user_field(page, node.get("user")),
        timeout_s=duration_field(page, node.get("timeout"), "timeout"),
        queue_timeout_s=None if of_step else duration_field(page, node.get("queue_timeout"), "queue_timeout"),
        on_partition=None if of_step else choice_field(page, node.get("on_partition"), "on_partition", OnPartition),
        retry=retry_field(page, node.get("retry"), in_place=of_step),
        cpus_milli=cpus_milli,
        memory_bytes=memory_bytes,
        gpus=gpus,
        constraints=constraints_field(page, node.get("agent")),
        mounts=mounts_field(page, node.get("volumes"), declares=declares),
        networks=attachments_field(page, node.get("networks"), declares=declares),
        services=services_field(page, node.get("services")),
    )


def directory_field(page: Page, node: Node | None, label: str) -> str | None:
    """An absolute path inside a container."""
    text = text_field(page, node, label)
    return text if text is not None and node is not None and is_path(page, node, text, label) else None


def user_field(page: Page, node: Node | None) -> str | None:
    """A user, by name or number, perhaps with a group."""
    text = word_field(page, node, "user")
    if text is None or node is None:
        return None
    if not text or not text.isprintable() or " " in text or len(text) > 100:
        page.error(
            node, "bad-user", f"'{shortened(text)}' cannot be a user", "write a name or a number, as in 1000:1000"
        )
        return None
    return text


def _resources(node: Node | None, page: Page) -> tuple[int | None, int | None, int | None]:
    mapping = map_field(page, node, "resources", "a mapping with 'cpus', 'memory' or 'gpus'")
    if mapping is None:
        return None, None, None
    check_keys(page, mapping, {"cpus", "memory", "gpus"}, "resources")
    return (
        measure_field(
            page, mapping.get("cpus"), "cpus", milli_of, expected="a number of cores", sample="0.5, 2 or 500m"
        ),
        measure_field(
            page, mapping.get("memory"), "memory", bytes_of, expected="a size of at least 6m", sample="512Mi or 2g"
        ),
        count_field(page, mapping.get("gpus"), "gpus", 64),
    )


def constraints_field(page: Page, node: Node | None) -> tuple[Constraint, ...] | None:
    """What an agent's labels must be: a text, a list of texts, or a mapping of labels to values."""
    match node:
        case None:
            return None
        case MapNode():
            return tuple(filter(None, (_mapped(page, node, key) for key in node.entries)))
        case ListNode():
            items = [constraints_field(page, item) for item in node.items]
            return tuple(constraint for item in items for constraint in item or ())
        case ScalarNode():
            text = text_field(page, node, "agent")
            return tuple(filter(None, (_demanded(page, node, part) for part in constraints_in(text or ""))))


def _demanded(page: Page, node: Node, text: str) -> Constraint | None:
    constraint = constraint_of(text)
    if constraint is None:
        page.error(
            node,
            "bad-label",
            f"'{shortened(text)}' is not a demand on an agent's labels",
            "write gpu=true, zone in [a, b], disk!=hdd, !spot or ssd",
        )
    return constraint


def _mapped(page: Page, node: MapNode, key: str) -> Constraint | None:
    item = node.entries[key]
    if not is_label(key):
        page.error(
            node.keys[key],
            "bad-label",
            f"'{shortened(key)}' cannot be a label",
            "use letters, digits, '.', '_', '-', '/'",
        )
        return None
    if isinstance(item, ScalarNode) and item.kind is Kind.NULL:
        return Constraint(key=key, operator="present")
    values = []
    for value in item.items if isinstance(item, ListNode) else (item,):
        text = _label_value(value)
        if text is None:
            wrong_kind(
                page, value, f"the label '{key}'", "a plain value or a list of them", "write for example gpu: true"
            )
            return None
        values.append(text)
    return Constraint(key=key, operator="in", values=tuple(values)) if values else None


def _label_value(node: Node) -> str | None:
    if not isinstance(node, ScalarNode):
        return None
    text = ("true" if is_true(node) else "false") if node.kind is Kind.BOOLEAN else node.text
    return text if is_label_value(text) else None
