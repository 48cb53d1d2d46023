"""Settings of triggers, as the state keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

WINDOW_DEFAULT_MS: Final = 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """What a webhook makes of a delivery.

    `inputs` is expression by input, `parameters` are given to each run beside them. A delivery makes a run only if
    each path of `when` is one of its values, and its event one of `events`, where there are any. `window_ms` is for
    how long a delivery is known again, and how far its own time may be off.
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    window_ms: int = WINDOW_DEFAULT_MS
