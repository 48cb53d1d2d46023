"""Definition: document text -> Plan. Two dialects, templates, actions, and every error with its place.

`make_plan` for what is to run, `lint` for what is being written, `document_name` for what is to be registered;
`declared_inputs` with `check_inputs`, and `inputs_schema`, for what a definition takes.

Where the language leaves a choice, it is made so:
- Rendered are `image`, `run`, `command`, `entrypoint`, `on`, `when`, the values of `with`, and every text in the values
  of env, workdir, user, timeout, queue_timeout, on_partition, retry, resources, agent, volumes, networks, services and
  concurrency. Names, keys, `dep`, `needs`, `from`, `async`, `priority` and `queue` are taken as they are; so is all of
  a pipeline JSON, and `script` with its `args`, `file`, `language`, `requirements` and `stdin`.
- A `script` without an image from anywhere, and without a container before it, gets its language's image.
- Settings, near to far: beside a `dep`, the step, its group, its definition, then the caller's group and definition.
  Variables, mounts, networks and resources win one by one. What actions and steps demand of agents adds up.
- `timeout` and `retry` of a group or a definition are its task's; of a step, and of an action that a `dep` uses, they
  are each step's own, `retry` as tries in place.
- `on_partition`, `queue_timeout` and `retry.memory` are a task's, so of a group or a definition, never of a step;
  `priority`, `queue`, `concurrency` and `notify` are a run's, so of its definition. Those of an action that a `dep`
  uses hold where it is run by itself, not for its callers. Nothing in `notify` is rendered with the parameters.
- A group of `concurrency` may be called whatever a definition may, for it is called as its definition unless it says.
- `image` of a group, or of a definition with `uses`, is for first steps that have none from anywhere nearer.
- Null is absent everywhere, also in `with`: a parameter that must be given is declared with a null.
- What `inputs` means is said in `inputs/__init__.py`.
- A condition is false for false, null, 0, nothing, and the text `false`.
"""

from pistage.core.definition.findings import Finding
from pistage.core.definition.inputs import Checked, Fault, Inputs, check_inputs
from pistage.core.definition.interface import declared_inputs, inputs_schema
from pistage.core.definition.library import Actions, ActionText
from pistage.core.definition.planning import Lint, Planned, document_name, lint, make_plan
from pistage.core.definition.schedules import parse_schedule
from pistage.core.definition.scripts import script_document

__all__ = [
    "ActionText", "Actions", "Checked", "Fault", "Finding", "Inputs", "Lint", "Planned",
    "check_inputs", "declared_inputs", "document_name", "inputs_schema", "lint", "make_plan",
    "parse_schedule", "script_document",
]  # fmt: skip
