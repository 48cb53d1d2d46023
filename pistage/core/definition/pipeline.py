"""Pipeline JSON: tasks with dependencies, whose steps each have a container of their own (J1 to J10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pistage.core import limits
from pistage.core.cron import Schedule
from pistage.core.definition.admission import admitted_to_run
from pistage.core.definition.building import Budget, TaskBuilder
from pistage.core.definition.concurrency import concurrency_field
from pistage.core.definition.environment import environment_field, is_variable
from pistage.core.definition.fields import (
    boolean_field,
    check_keys,
    list_field,
    map_field,
    name_field,
    respelled,
    text_field,
    words_field,
    wrong_kind,
)
from pistage.core.definition.findings import Page
from pistage.core.definition.graph import Needs, checked_needs
from pistage.core.definition.images import check_image
from pistage.core.definition.inputs import inputs_field
from pistage.core.definition.nodes import ListNode, MapNode, Node, ScalarNode, shortened
from pistage.core.definition.reservation import reservation_of
from pistage.core.definition.retries import check_growth
from pistage.core.definition.schedules import crontab_field
from pistage.core.definition.scope import Renderer, Scope, check_names
from pistage.core.definition.settings import Settings, directory_field, parse_settings
from pistage.core.definition.storage import declared_networks, declared_volumes
from pistage.core.plan import (
    Block,
    Concurrency,
    Network,
    OnPartition,
    RegistryAuth,
    Retry,
    Step,
    Task,
    Volume,
    When,
)

#: J2: the other spellings of a key, each read as the first of its row.
_SPELLINGS = (
    ("pipelineTasks", "pipeline"),
    ("workingDir", "working_dir", "workdir"),
    ("entryPoint", "entry_point", "entrypoint"),
    ("onSuccess", "on_success"),
    ("onFailure", "on_failure"),
    ("authConfig", "auth_config"),
    ("environment", "env"),
    ("environmentString", "environment_string"),
    ("startNode", "start_node"),
    ("runOnce", "run_once"),
    ("timezone", "timeZone", "time_zone"),
    ("on_partition", "onPartition"),
    ("queue_timeout", "queueTimeout"),
)
_OUTPUT = {"id", "isAvailable", "runningPipelines", "finishedPipeliens", "finished"}  # J1: what the original writes
_SHARED = {"timeout", "retry", "resources", "agent", "services", "user"}
_PLACING = {"on_partition", "queue_timeout"}
_PIPELINE = (
    {"name", "description", "pipelineTasks", "networks", "volumes", "startNode", "runOnce", "crontab", "timezone"}
    | {"priority", "queue", "concurrency", "inputs", "after", "notify"}
    | _OUTPUT
    | _SHARED
    | _PLACING
)
_TASK = {"id", "name", "alias", "dependencies", "steps"} | _SHARED | _PLACING
_STEP = (
    {"id", "name", "alias", "image", "workingDir", "environment", "environmentString", "entryPoint", "command"}
    | {"volumes", "networks", "onSuccess", "onFailure", "authConfig"}
    | _SHARED
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineParts:
    """The tasks of a pipeline document, and what they need beside them."""

    tasks: tuple[Task, ...]
    needs: Needs
    networks: Mapping[str, Network]
    volumes: Mapping[str, Volume]
    schedule: Schedule | None
    start_node: ScalarNode | None
    concurrency: Concurrency | None


def plan_pipeline(root: MapNode, page: Page, given: Scope, renderer: Renderer) -> PipelineParts | None:
    """The tasks of a pipeline document. It has no templates: inputs and parameters are in the environment only."""
    root = respelled(page, root, _SPELLINGS)
    pipeline_name = name_field(page, root.get("name"), root)
    check_keys(page, root, _PIPELINE, "a pipeline")
    inputs = inputs_field(page, root.get("inputs"))
    given = admitted_to_run(inputs, given, page, renderer)
    check_names(given, page, None)
    far = parse_settings(root.without("networks", "volumes", "environment"), page)
    nodes = _task_nodes(root, page)
    if not nodes:
        return None
    asked = {name: _dependencies(node, page) for name, node in nodes.items()}
    needs = checked_needs(asked, page, "task")
    budget = Budget()
    planner = _Pipeline(page, given, renderer, budget)
    tasks = tuple(planner.task(name, node, needs[name], far) for name, node in nodes.items())
    return PipelineParts(
        tasks=tasks,
        needs=needs,
        networks=declared_networks(page, root.get("networks")),
        volumes=declared_volumes(page, root.get("volumes")),
        schedule=crontab_field(root, page),
        start_node=_start_node(root, page),
        concurrency=concurrency_field(page, root.get("concurrency"), pipeline_name or ""),
    )


def _task_nodes(root: MapNode, page: Page) -> dict[str, MapNode]:
    """The tasks by name."""
    found: dict[str, MapNode] = {}
    node = root.entries["pipelineTasks"]
    items = list_field(page, node, "pipelineTasks", "a list of tasks")
    if not items and (isinstance(node, ListNode) or root.get("pipelineTasks") is None):
        page.error(node, "empty", "pipelineTasks is empty", "give it a task with 'name' and 'steps'")
    for item in items:
        mapping = map_field(page, item, "a task")
        if mapping is None:
            continue
        mapping = respelled(page, mapping, _SPELLINGS)
        check_keys(page, mapping, _TASK, "a task")
        name = name_field(page, mapping.get("name"), mapping)
        if name is None:
            continue
        if name in found:
            page.error(
                mapping.entries["name"], "repeated-name", f"two tasks are called '{shortened(name)}'", "rename one"
            )
        found.setdefault(name, mapping)
    return found


def _dependencies(node: MapNode, page: Page) -> list[ScalarNode]:
    items = list_field(page, node.get("dependencies"), "dependencies", "a list of names of tasks")
    return [
        item for item in items if text_field(page, item, "a dependency") is not None and isinstance(item, ScalarNode)
    ]


def _start_node(root: MapNode, page: Page) -> ScalarNode | None:
    node = root.get("startNode")
    return node if text_field(page, node, "startNode") is not None and isinstance(node, ScalarNode) else None


@dataclass(frozen=True, slots=True)
class _Pipeline:
    page: Page
    given: Scope
    renderer: Renderer
    budget: Budget

    def task(self, name: str, node: MapNode, needs: tuple[str, ...], far: Settings) -> Task:
        """One task: its steps in order."""
        page = self.page
        own = parse_settings(node, page).over(far)
        builder = TaskBuilder(self.budget)
        builder.add_constraints(own.constraints)
        steps_node = node.get("steps")
        items = list_field(page, steps_node, "steps", "a list of steps")
        if not items and (steps_node is None or isinstance(steps_node, ListNode)):
            page.error(steps_node or node, "empty", f"the task '{shortened(name)}' has no steps", "give it 'steps'")
        made = [self._step(item, own, builder) for item in items]
        body = Block(kind="sequence", name=name, children=tuple(step for step in made if step is not None))
        contexts = tuple(builder.contexts)
        check_growth(page, own.retry, name, contexts)
        return Task(
            name=name,
            body=body,
            contexts=contexts,
            needs=needs,
            services=tuple(builder.services.values()),
            constraints=tuple(builder.constraints),
            resources=reservation_of(body, contexts),
            retry=own.retry.task if own.retry else Retry(),
            timeout_s=own.timeout_s or limits.TASK_TIMEOUT_DEFAULT_S,
            queue_timeout_s=own.queue_timeout_s,
            on_partition=own.on_partition or OnPartition.KILL,
        )

    def _step(self, item: Node, task: Settings, builder: TaskBuilder) -> Step | None:
        page = self.page
        mapping = map_field(page, item, "a step")
        if mapping is None:
            return None
        node = respelled(page, mapping, _SPELLINGS)
        check_keys(page, node, _STEP, "a step")
        own = parse_settings(node.without("environment", "workingDir"), page, of_step=True)
        builder.add_constraints(own.constraints)
        builder.add_services(own.over(task).services, page, node)
        image = self._image(node)
        if image is None:
            return None
        step_id = builder.next_id()
        name = name_field(page, node.get("name"), node) if node.get("name") is not None else None
        made = Step(
            id=step_id,
            name=name or f"step {step_id}",
            context=builder.new_context(image, own.over(task), _auth(node.get("authConfig"), page)),
            entrypoint=words_field(page, node.get("entryPoint"), "entryPoint"),
            command=words_field(page, node.get("command"), "command"),
            env=_environment(node, page),
            parameters=self.renderer.parameters(self.given, page, node),
            workdir=directory_field(page, node.get("workingDir"), "workingDir") or "/workspace",
            user=own.user or task.user,
            timeout_s=own.timeout_s,
            when=_when(node, page),
            retries=own.tries or 0,
        )
        self.budget.spend_step(made, page, node)
        return made

    def _image(self, node: MapNode) -> str | None:
        image = text_field(self.page, node.get("image"), "image")
        if node.get("image") is None:
            self.page.error(node, "no-image", "a step needs an 'image'", "give it 'image': '…'")
        if image is not None:
            check_image(image, self.page, node.entries["image"])
        return image


def _when(node: MapNode, page: Page) -> When:
    """J4: `onFailure` runs a step after a failure, with `onSuccess: false` only then; that alone skips nothing."""
    is_on_success = boolean_field(page, node.get("onSuccess"), "onSuccess", default=True)
    is_on_failure = boolean_field(page, node.get("onFailure"), "onFailure")
    if is_on_failure:
        return When.ALWAYS if is_on_success else When.FAILURE
    return When.SUCCESS


def _environment(node: MapNode, page: Page) -> dict[str, str]:
    """J8: `environmentString` below `environment`."""
    found: dict[str, str] = {}
    for item in list_field(page, node.get("environmentString"), "environmentString", "a list of NAME=value"):
        text = text_field(page, item, "an item of environmentString")
        name, equals, value = (text or "").partition("=")
        if text is None:
            continue
        if not equals:
            wrong_kind(page, item, "an item of environmentString", "NAME=value", "put a '=' behind the name")
        elif is_variable(page, item, name):
            found[name] = value
    return found | environment_field(page, node.get("environment"), "environment")


def _auth(node: Node | None, page: Page) -> RegistryAuth | None:
    """J9: `{}` is anonymous. What is wrong here is told without what was written."""
    mapping = node if isinstance(node, MapNode) else None
    if node is not None and mapping is None:
        page.error(node, "wrong-kind", "authConfig must be a mapping", "give it username, password and serveraddress")
    if mapping is None or not mapping.entries:
        return None
    known = {"username": "", "password": "", "serveraddress": ""}
    for key, item in mapping.entries.items():
        name = key.replace("_", "").lower()
        if name not in known:
            page.warn(mapping, "unknown-key", "a key of authConfig means nothing", f"known are {', '.join(known)}")
        elif isinstance(item, ScalarNode):
            known[name] = "" if mapping.get(key) is None else item.text
        else:
            page.error(mapping, "wrong-kind", f"authConfig.{name} must be a string", "write it in quotes")
    if not any(known.values()):
        return None
    return RegistryAuth(username=known["username"], password=known["password"], server_address=known["serveraddress"])
