"""The lease: until when this agent may let its work run although no master answers it.

It runs from when the newest heartbeat that was answered was *sent*, on the clock that also runs while the machine
sleeps, and it is kept in a small file, so that an agent that is killed and started again knows when it ends. The
leader waits for 1.1 x 1.25 x lease + 1 s, by its own clock, from when it last heard an agent, before it gives that
agent's work to another: a quarter of a lease to end what runs, and a tenth for clocks that differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: Of the lease: between its end and the kill, for stop signals. As much again is left for the kill itself.
_GRACE_SHARE = 1 / 8
_KEPT_EVERY_S = 1.0
#: The loop's own clock stands still while the machine sleeps, so nobody waits for longer than this at once.
_LOOK_EVERY_S = 0.25


def boottime_s() -> float:
    """Seconds since the machine was started, those in which it slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def boot_id() -> str:
    """Which start of the machine this is; "" where that cannot be told."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """A lease that ended: for how long no master had been heard, and how much grace what runs still has."""

    unheard_s: float
    grace_s: float


class Lease:
    """Unknown until a master answers, or `resume` finds that an agent before this one had one."""

    def __init__(
        self,
        file: Path,
        on_end: Callable[[Expiry], None],
        *,
        now: Callable[[], float] = boottime_s,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._file = file
        self._on_end = on_end
        self._now = now
        self._boot = boot()
        self._from_s: float | None = None
        self._length_s = 0.0
        self._kept_at = -_KEPT_EVERY_S
        self._is_unkept = False

    @property
    def is_known(self) -> bool:
        """Whether there ever was one."""
        return self._from_s is not None

    def resume(self) -> None:
        """Go on with the lease of the agent before this one; of before the machine was started, nothing runs."""
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
            is_of_this_boot = bool(self._boot) and known["boot_id"] == self._boot
            since, length = float(known["from_s"]), float(known["length_s"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s holds no lease: %s", self._file, error)
            return
        if is_of_this_boot:
            self._from_s, self._length_s = since, length

    def renew(self, sent_s: float, *, length_s: float | None = None) -> None:
        """What was sent at `sent_s` was answered. What a lease that ended meanwhile demands is done first."""
        self.check()
        if length_s is not None:
            self._length_s = length_s
        self._from_s = max(sent_s, self._from_s or sent_s)
        self._keep()

    def check(self) -> None:
        """Say so if the lease is over: at every look, for as long as it is."""
        if self._from_s is None or (late_s := self._now() - self._from_s - self._length_s) < 0:
            return
        self._on_end(Expiry(unheard_s=late_s + self._length_s, grace_s=self._length_s * _GRACE_SHARE - late_s))

    async def watch(self) -> None:
        """Look at it, until cancelled."""
        while True:
            self.check()
            left_s = _LOOK_EVERY_S
            if self._from_s is not None:
                left_s = min(left_s, self._from_s + self._length_s - self._now())
            # An end is looked at again and again: what comes in after it is not to run either.
            await asyncio.sleep(left_s if left_s > 0 else _LOOK_EVERY_S)
            if self._is_unkept:
                self._keep()

    def _keep(self) -> None:
        """In the file, at most once a second. Not flushed: it need not outlive the machine's own start."""
        self._is_unkept = self._now() - self._kept_at < _KEPT_EVERY_S
        if self._is_unkept:
            return
        self._kept_at = self._now()
        draft = self._file.with_suffix(".new")
        known = {"boot_id": self._boot, "from_s": self._from_s, "length_s": self._length_s}
        # Without it a later agent fences too early, or, where there never was one, not at all: no reason to stop.
        with contextlib.suppress(OSError):
            draft.write_text(json.dumps(known), encoding="utf-8")
            draft.replace(self._file)
