"""Environment: the variables a document sets, and the family it must leave alone."""

from __future__ import annotations

from pistage.core.definition.fields import map_field, word_field
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import Node, Place, is_null, shortened
from pistage.core.definition.units import is_environment_name

RESERVED = "PISTAGE_"  # ours alone: what reads them trusts them (S13)


def environment_field(page: Page, node: Node | None, label: str) -> dict[str, str]:
    """A mapping of variables to single values; null is absent."""
    mapping = map_field(page, node, label, "a mapping of variables to values")
    if mapping is None:
        return {}
    found: dict[str, str] = {}
    for name, item in mapping.entries.items():
        if not is_variable(page, mapping.keys[name], name) or is_null(item):
            continue
        value = word_field(page, item, f"the variable {shortened(name)}")
        if value is not None:
            found[name] = value
    return found


def is_variable(page: Page, at: Place, name: str) -> bool:
    """Whether a document may set `name`; the page says why not."""
    if name.upper().startswith(RESERVED):
        page.error(
            at,
            "reserved-variable",
            f"the variable '{shortened(name)}' is reserved: names that begin with {RESERVED} are set by Pistage",
            "choose another name",
        )
        return False
    if not is_environment_name(name):
        page.error(
            at,
            "bad-variable",
            f"'{shortened(name)}' cannot be the name of a variable",
            "begin with a letter or '_', go on with letters, digits, '_', '.' or '-'",
        )
        return False
    return True
