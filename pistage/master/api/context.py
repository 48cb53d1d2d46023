"""What the routes share: the replica, the agents, the output, and who is asking."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from pistage.config import MasterConfig
from pistage.errors import Code, PistageError
from pistage.master.afters import Afters
from pistage.master.api.submissions import Planner
from pistage.master.archiving import Archiving
from pistage.master.copies import Copies
from pistage.master.directories import refuse_unless_space
from pistage.master.dispatch import Dispatch
from pistage.master.logs import LogStore
from pistage.master.losses import Losses
from pistage.master.members import Members
from pistage.master.notices import Notices
from pistage.master.outward import Outward
from pistage.master.peers import Peers
from pistage.master.replica import Replica
from pistage.master.retention import Drops, Removals
from pistage.master.schedules import Schedules
from pistage.master.sealing import Sealing
from pistage.master.sessions import Sessions
from pistage.master.signals import Signals
from pistage.master.snapshots import Snapshots


@dataclass(frozen=True, slots=True)
class Context:
    """One per master."""

    settings: MasterConfig
    has_token: bool
    replica: Replica
    peers: Peers
    members: Members
    snapshots: Snapshots
    sessions: Sessions
    dispatch: Dispatch
    losses: Losses
    drops: Drops
    schedules: Schedules
    afters: Afters
    outward: Outward
    notices: Notices
    removals: Removals
    sealing: Sealing
    archiving: Archiving
    logs: LogStore
    copies: Copies
    planner: Planner
    run_signals: Signals  # by run: its state has changed

    def owner_of(self, request: web.Request) -> str:
        """Who asks: the name behind the credential, never a field of the request."""
        return "cluster" if self.has_token else "local"

    def project_of(self, request: web.Request) -> str:
        """The project that is asked for; `not_found` for one that is not configured."""
        project = request.query.get("project", "default")
        if project not in self.settings.projects:
            raise PistageError(
                Code.NOT_FOUND, f"no project {project[:50]!r}", hint=f"known: {', '.join(self.settings.projects)}"
            )
        return project

    def url_of(self, node_id: str | None) -> str | None:
        """Where a master is reached, this one too, as far as is known."""
        if node_id is None:
            return None
        return self.peers.hello().url if node_id == self.replica.node_id else self.peers.url_of(node_id)

    def leader_elsewhere(self) -> str:
        """The URL of another master that leads; "" where there is none, or it is not known."""
        leader = self.replica.leader
        return "" if leader in (None, self.replica.node_id) else self.url_of(leader) or ""

    def why_waiting(self, run_id: str, position: int) -> tuple[str, bool]:
        """Why a queued task waits, in a line, and whether an agent here could ever take it, as far as is known."""
        explanation = self.dispatch.explain((run_id, position))
        return ("", True) if explanation is None else (explanation.brief, explanation.is_placeable)

    def refuse_unless_space(self) -> None:
        """See `directories`."""
        refuse_unless_space(self.settings)
