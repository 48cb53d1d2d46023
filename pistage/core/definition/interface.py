"""Interface: what a document takes, without planning it: its inputs, and their JSON Schema."""

from __future__ import annotations

from contextlib import suppress

from pistage.core.definition.document import read_document
from pistage.core.definition.fields import word_field
from pistage.core.definition.findings import Report, StopError
from pistage.core.definition.inputs import Inputs, inputs_field, schema_of
from pistage.core.definition.nodes import MapNode


def declared_inputs(text: str | bytes) -> Inputs | None:
    """The inputs that a document declares, None where it declares none; PistageError `invalid` if they are wrong."""
    return _read(text)[1]


def inputs_schema(text: str | bytes) -> dict[str, object]:
    """The JSON Schema (2020-12) of what a document takes; PistageError `invalid` if that is declared wrongly."""
    root, inputs = _read(text)
    ignored = Report().page()
    name, description = (word_field(ignored, root.get(key), key) or "" for key in ("name", "description"))
    return schema_of(name, description, inputs)


def _read(text: str | bytes) -> tuple[MapNode, Inputs | None]:
    report = Report()
    document = read_document(text, report)
    if document is None:
        raise report.refusal()
    root = document.root
    with_ = root.get("with")
    inputs = None
    with suppress(StopError):  # enough was found
        page = report.page(None, document.shifts)
        inputs = inputs_field(page, root.get("inputs"), with_ if isinstance(with_, MapNode) else None)
    if report.errors:
        raise report.refusal()
    return root, inputs
