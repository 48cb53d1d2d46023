"""Definition: document text -> Plan. Two dialects, templates, actions, and every error with its place.

`make_plan` for what is to run, `lint` for what is being written, `document_name` for what is to be registered.
"""

from pistage.core.definition.findings import Finding
from pistage.core.definition.library import Actions, ActionText
from pistage.core.definition.planning import Lint, Planned, document_name, lint, make_plan

__all__ = ["ActionText", "Actions", "Finding", "Lint", "Planned", "document_name", "lint", "make_plan"]
