"""Services: the sidecars of a task, as a list or a mapping by name."""

from __future__ import annotations

import re

from pistage.core.definition.environment import environment_field
from pistage.core.definition.fields import (
    check_keys,
    count_field,
    duration_field,
    list_field,
    map_field,
    text_field,
    words_field,
)
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import MapNode, Node, Place, ScalarNode, shortened
from pistage.core.plan import HealthCheck, Service

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def services_field(page: Page, node: Node | None) -> tuple[Service, ...]:
    """The services in `node`; each name once."""
    if isinstance(node, MapNode):
        found = [_service(page, item, node.keys[name], name) for name, item in node.entries.items()]
    else:
        found = [_listed(page, item) for item in list_field(page, node, "services", "a list or a mapping of services")]
    services: dict[str, Service] = {}
    for service in found:
        if service is None:
            continue
        if service.name in services and node is not None:
            page.error(node, "repeated-name", f"two services are called '{service.name}'", "rename one of them")
        services[service.name] = service
    return tuple(services.values())


def _listed(page: Page, item: Node) -> Service | None:
    mapping = map_field(page, item, "a service")
    if mapping is None:
        return None
    if mapping.get("name") is None:
        page.error(item, "no-name", "a service has no 'name'", "give it 'name: …', the host name it answers to")
    name = text_field(page, mapping.get("name"), "name")
    return None if name is None else _service(page, item, item, name)


def _service(page: Page, node: Node, at: Place, name: str) -> Service | None:
    mapping = map_field(page, node, "a service")
    if mapping is None:
        return None
    check_keys(page, mapping, {"name", "image", "command", "env", "environment", "health"}, "a service")
    if not _NAME.fullmatch(name):
        page.error(
            at,
            "bad-name",
            f"'{shortened(name)}' cannot be the name of a service",
            "it is a host name: a-z, 0-9 and '-'",
        )
        return None
    if mapping.get("image") is None:
        page.error(at, "no-image", f"the service '{name}' has no 'image'", "give it 'image: …'")
    image = text_field(page, mapping.get("image"), "image")
    command = words_field(page, mapping.get("command"), "command")
    env = environment_field(page, mapping.get("env") or mapping.get("environment"), "env")
    health = _health(page, mapping.get("health"))
    return None if image is None else Service(name=name, image=image, command=command, env=env, health=health)


def _health(page: Page, node: Node | None) -> HealthCheck | None:
    if node is None or isinstance(node, ScalarNode):
        command = text_field(page, node, "health")
        return None if command is None else HealthCheck(command=command)
    mapping = map_field(page, node, "health", "a command or a mapping with 'command'")
    if mapping is None:
        return None
    check_keys(page, mapping, {"command", "interval", "retries"}, "health")
    if mapping.get("command") is None:
        page.error(mapping, "no-command", "a health check has no 'command'", "give it 'command: …'")
    command = text_field(page, mapping.get("command"), "health.command")
    interval = duration_field(page, mapping.get("interval"), "health.interval")
    retries = count_field(page, mapping.get("retries"), "health.retries", 1000)
    if command is None:
        return None
    default = HealthCheck(command=command)
    return HealthCheck(
        command=command,
        interval_s=default.interval_s if interval is None else interval,
        retries=default.retries if retries is None else retries,
    )
