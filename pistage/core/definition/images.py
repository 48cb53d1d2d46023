"""Images and contexts: which container a step runs in, from P4 and P10 to P12."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pistage.core.definition.fields import wrong_kind
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import MapNode, Node, Place, ScalarNode, shortened

UNKNOWN = "?"  # the context of a step that has none, after an error: the plan is never made
_CONTEXT_KEYS = ("resources", "volumes", "networks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images that a first step may get from around it: `replacement` before its own (P4), `fallback` after it."""

    replacement: str | None = None
    fallback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The container that a step leaves behind for the next; None where several groups leave one each (P11)."""

    context: str | None
    choices: Mapping[str, Exit] = field(default_factory=dict)


def exit_of(exits: Mapping[str, Exit]) -> Exit:
    """What an action leaves behind: its `main` group's container, or its only group's."""
    chosen = exits.get("main") or (next(iter(exits.values())) if len(exits) == 1 else None)
    return Exit(context=chosen.context if chosen is not None else None, choices=exits)


def entered(previous: Exit, node: MapNode, page: Page) -> str:
    """The context of a step without an image: that of the step before it, or of the group that `from` names."""
    wanted = node.get("from")
    if wanted is not None:
        return _chosen(previous, wanted, page)
    if previous.context is not None:
        return previous.context
    groups = ", ".join(shortened(name, 40) for name in previous.choices)
    page.error(
        node,
        "ambiguous-context",
        f"the step before this one ends in several containers, those of its groups {groups}, and none is 'main'",
        f"say which with 'from: {next(iter(previous.choices), '…')}', or give this step an image",
    )
    return UNKNOWN


def _chosen(previous: Exit, wanted: Node, page: Page) -> str:
    if not isinstance(wanted, ScalarNode):
        wrong_kind(page, wanted, "from", "the name of a group", "write for example from: main")
        return UNKNOWN
    found = previous.choices.get(wanted.text)
    if found is not None and found.context is not None:
        return found.context
    if not previous.choices:
        if previous.context != UNKNOWN:
            page.error(
                wanted,
                "bad-from",
                "'from' names a group of the 'dep' before, but the step before is none",
                "take it out",
            )
        return UNKNOWN
    groups = ", ".join(shortened(name, 40) for name in previous.choices)
    page.error(
        wanted,
        "bad-from",
        f"'from' must name one of the groups {groups}, not '{shortened(wanted.text)}'",
        "name one of them",
    )
    return UNKNOWN


def check_inherits(node: MapNode, page: Page) -> None:
    """A step that runs in the container of another cannot ask for that container to be different."""
    for key in _CONTEXT_KEYS:
        if node.get(key) is not None:
            page.error(
                node.keys[key],
                "inherited-context",
                f"'{key}' has no effect here: a step without an image runs in the container of the step before it",
                f"give the step an 'image', or move '{key}' to the step that starts the container",
            )


def check_image(text: str, page: Page, at: Place) -> None:
    """Note what is not shaped like an image's name."""
    if not text.isprintable() or any(char.isspace() for char in text) or len(text) > 500 or text[0] in "-/":
        page.error(
            at, "bad-image", f"'{shortened(text)}' cannot be the name of an image", "write it as registry/name:tag"
        )
