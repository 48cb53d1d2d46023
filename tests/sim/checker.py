"""The invariants, each checked when something happens that could break it (so that a check costs little)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from pistage import raft
from pistage.raft import messages as m
from tests.sim.machine import RAISE, words_of
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.world import World


class Checker:
    """Sees every step, write, send and apply of every host, and what clients were told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leaders: dict[int, tuple[str, int]] = {}
        self.entries: dict[tuple[int, int], tuple[bytes, raft.Kind, int]] = {}
        self.committed: list[int] = [0]  # the term of each committed index
        self.committed_in: list[int] = [0]  # the term of the leader that committed it
        self.votes: dict[tuple[str, int], str] = {}
        self.digests: dict[int, bytes] = {}
        self.executed: dict[str, int] = {}  # request: index
        self.versions: dict[str, list[tuple[int, str]]] = {}
        self.acknowledged: dict[str, int] = {}
        self.seen_index = 0  # the newest state that any client was shown
        self._last: dict[str, tuple[int, int]] = {}  # of each host: term and commit after its last step
        self.rotten: set[str] = set()  # whose state was ever damaged on purpose
        self._newest_applied = 0
        self._must_know: set[str] = set()

    # --- after a step ------------------------------------------------------------------------------------------

    def starting(self, host: Host) -> None:
        if not host.disk.base.index <= host.machine.index <= host.disk.last_index:
            span = f"{host.disk.base.index}..{host.disk.last_index}"
            raise Violation("I9", f"{host.name} has a state at {host.machine.index} and a log of {span}")

    def started(self, host: Host) -> None:
        node = host.node
        assert node is not None
        before = self._last.get(host.name)
        self._last[host.name] = (node.term, node.commit)
        if before is not None and node.term > before[0]:
            raise Violation("I8", f"{host.name} starts in term {node.term}, it was in {before[0]}")

    def stepped(self, host: Host, node: raft.Node, event: raft.Event, actions: list[raft.Action]) -> None:
        term, commit = self._last[host.name]
        if node.term < term or node.commit < commit:
            raise Violation("I8", f"{host.name} went from term {term}, commit {commit} to {node.term}, {node.commit}")
        log = node.log
        if not log.base.index <= node.applied <= node.commit <= log.last_index:
            span = f"{log.base.index} <= {node.applied} <= {node.commit} <= {log.last_index}"
            raise Violation("I9", f"{host.name}: not {span}")
        for action in actions:
            if isinstance(action, raft.Persist):
                self._persist(host, node, action)
            elif isinstance(action, raft.Role):
                self._role(host, node)
            elif isinstance(action, raft.Send) and action.after_seq is None:
                self.promised(host, action.message)
        waits_since = host.write_ticks[0] if host.write_ticks and isinstance(event, raft.Tick) else node.now
        if node.leadership is not None and node.now - waits_since > node.settings.election_ticks + 1:
            raise Violation("stalled", f"{host.name} leads although its disk has not answered for long")
        if node.commit > commit:
            self._commit(host, node, commit)
        self._last[host.name] = (node.term, node.commit)

    def _persist(self, host: Host, node: raft.Node, persist: raft.Persist) -> None:
        if persist.truncate_from is not None:
            if node.leadership is not None:
                raise Violation("I2", f"{host.name} leads and truncates at {persist.truncate_from}")
            self.world.count("truncation")
            self._config_in_force(host, node)
        for entry in persist.entries:
            prev_term = node.log.term_of(entry.index - 1)
            known = self.entries.setdefault(
                (entry.index, entry.term), (entry.payload, entry.kind, -1 if prev_term is None else prev_term)
            )
            if known[:2] != (entry.payload, entry.kind) or (prev_term is not None and known[2] not in (prev_term, -1)):
                raise Violation("I3", f"{host.name} has another entry at {entry.index} of term {entry.term}")
            if entry.kind is raft.Kind.CONFIG and node.leadership is not None:
                self._config(host, node, entry)

    def _config_in_force(self, host: Host, node: raft.Node) -> None:
        log = node.log
        kept = [entry for entry in log.entries(log.base.index + 1, log.last_index) if entry.kind is raft.Kind.CONFIG]
        if log.config != (raft.Config.decode(kept[-1].payload) if kept else log.base.config):
            raise Violation("I11", f"{host.name} goes by a membership that is not in its log")

    def _config(self, host: Host, node: raft.Node, entry: raft.Entry) -> None:
        earlier = [old for old in node.log.entries(node.log.base.index + 1, entry.index - 1) if old.kind is entry.kind]
        before = raft.Config.decode(earlier[-1].payload) if earlier else node.log.base.config
        after = raft.Config.decode(entry.payload)
        assert node.leadership is not None
        if earlier and earlier[-1].index > node.commit:
            raise Violation("I11", f"{host.name} has two uncommitted memberships, {earlier[-1].index}, {entry.index}")
        if node.commit < node.leadership.first_index:
            raise Violation("I11", f"{host.name} changes the membership before a commit of its term")
        if len(set(before.voters) ^ set(after.voters)) > 1:
            raise Violation("I11", f"{host.name} goes from {before.voters} to {after.voters} in one step")
        self.world.count("membership change")

    def _role(self, host: Host, node: raft.Node) -> None:
        if node.role is not raft.RoleName.LEADER:
            return
        self.world.count("election won")
        me = (host.name, host.starts)
        if self.leaders.setdefault(node.term, me) != me:
            raise Violation("I1", f"term {node.term} has two leaders, {self.leaders[node.term]} and {me}")
        granted = {voter for voter in node.log.config.voters if self.votes.get((voter, node.term)) == host.name}
        if not node.log.config.is_quorum(granted | {host.name}):
            raise Violation("I1", f"{host.name} leads term {node.term} with the votes of {sorted(granted)}")
        # A late winner of an older term owes nothing to what a newer one has committed.
        last = bisect_left(self.committed_in, node.term) - 1
        if node.log.base.index <= last and node.log.term_of(last) != self.committed[last]:
            raise Violation("I4", f"{host.name} leads term {node.term} without the committed entry {last}")

    def _commit(self, host: Host, node: raft.Node, commit: int) -> None:
        log = node.log
        if node.leadership is not None and log.term_at(node.commit) != node.term:
            # §5.4.2 by its letter: what comes of breaking it (figure 8, I4) takes about a thousand seeds to come about.
            raise Violation("I6", f"{host.name} commits {node.commit} of an older term by counting")
        for index in range(max(commit, log.base.index) + 1, node.commit + 1):
            term = log.term_at(index)
            if index < len(self.committed):
                if self.committed[index] != term:
                    was = self.committed[index]
                    raise Violation("I6", f"{host.name} commits term {term} at {index}, where term {was} was committed")
            elif index == len(self.committed):
                self.committed.append(term)
                self.committed_in.append(max(node.term, self.committed_in[-1]))
                self.world.count("commit")
                if index == node.commit:
                    self._quorum(host, node, index, term)
        if node.leadership is not None and not node.is_voter and log.config_index <= node.commit:
            raise Violation("I11", f"{host.name} leads on although its removal is committed")

    def _quorum(self, host: Host, node: raft.Node, index: int, term: int) -> None:
        holders = {name for name, other in self.world.hosts.items() if other.disk.holds(index, term)}
        if not node.log.config.is_quorum(holders):
            voters = node.log.config.voters
            raise Violation("I7", f"{host.name} commits {index}, durable only on {sorted(holders)} of {voters}")

    def fatal(self, host: Host, fatal: raft.Fatal) -> None:
        if "differs" in fatal.reason and self.rotten:
            if fatal.is_state_damaged and not host.machine.is_rotten:
                raise Violation("I5", f"{host.name} is called damaged, and is not (any more): {fatal.reason}")
            self.world.count("rot found")
            return
        for words, invariant in (("two leaders", "I1"), ("lost entries", "I7"), ("differs", "I5")):
            if words in fatal.reason:
                raise Violation(invariant, f"{host.name}: {fatal.reason}")

    # --- the disk, promises and the state -------------------------------------------------------------------------

    def written(self, host: Host, before: raft.HardState, persist: raft.Persist) -> None:
        after = host.disk.hard_state
        if after.term < before.term or (after.term == before.term and before.vote not in (None, after.vote)):
            raise Violation("I8", f"{host.name} writes {after} over {before}")
        if persist.last_index != host.disk.last_index:
            raise Violation("I9", f"{host.name}'s log ends at {host.disk.last_index}, not at {persist.last_index}")

    def promised(self, host: Host, message: raft.Message) -> None:
        """A grant or an acknowledgement leaves the host: what it says must be durable there."""
        disk = host.disk
        if isinstance(message, m.AppendResp):
            if disk.hard_state.term <= message.term and disk.last_index < message.match_index:
                raise Violation("I10", f"{host.name} acknowledges {message.match_index}, has {disk.last_index} durable")
            if disk.hard_state.term < message.term:
                raise Violation("I10", f"{host.name} acknowledges in term {message.term}, which is not durable")
        elif isinstance(message, m.VoteResp) and message.is_granted:
            if self.votes.setdefault((host.name, message.term), message.dst) != message.dst:
                raise Violation("I1", f"{host.name} votes twice in term {message.term}")
            if disk.hard_state.term <= message.term and disk.hard_state != raft.HardState(
                term=message.term, vote=message.dst
            ):
                raise Violation("I10", f"{host.name} grants a vote in term {message.term}, which is not durable")

    def applied(self, host: Host, entry: raft.Entry, *, is_new: bool) -> None:
        index, digest = entry.index, host.machine.digest
        if index >= len(self.committed) or self.committed[index] != entry.term:
            raise Violation("I6", f"{host.name} applies {index} of term {entry.term}, which is not committed")
        if not host.machine.is_rotten and self.digests.setdefault(index, digest) != digest:
            raise Violation("I5", f"{host.name} has another state at {index}")
        if index > self._newest_applied:
            self._newest_applied = index
            self._first_applied(host, entry)
        if is_new:
            request, key, value, _ = words_of(entry.payload)
            if self.executed.setdefault(request, index) != index:
                raise Violation("I12", f"request {request} is carried out at {index}, and was at an earlier index")
            versions = self.versions.setdefault(key, [])
            if not versions or versions[-1][0] < index:
                versions.append((index, value))

    def _first_applied(self, host: Host, entry: raft.Entry) -> None:
        if entry.payload.startswith(RAISE.encode()):
            self.world.count("version raised")
            self._must_know |= set(host.machine.config.members)
        if self.world.fleet is not None:
            self.world.fleet.applied(host, entry)

    def unknown_command(self, host: Host) -> None:
        """Allowed only to who came after the version was raised."""
        self.world.count("unknown command")
        if host.name in self._must_know:
            raise Violation("version", f"{host.name} meets a command that it does not know, and was a member before")

    # --- what clients were told ---------------------------------------------------------------------------------------

    def write_acknowledged(self, request: str, index: int, floor: int) -> None:
        if request not in self.executed:
            raise Violation("I12", f"request {request} is acknowledged and was never carried out")
        if self.executed[request] <= floor and request not in self.acknowledged:
            raise Violation("I13", f"request {request} took effect before it was made")
        self.acknowledged[request] = index
        self.seen_index = max(self.seen_index, index)

    def read_served(self, key: str, value: str, index: int, floor: int) -> None:
        if index < floor:
            raise Violation("I13", f"a read of {key} shows the state at {index}; {floor} was shown before it began")
        versions = self.versions.get(key, [])
        at = bisect_right(versions, index, key=lambda version: version[0])
        if value != (versions[at - 1][1] if at else ""):
            raise Violation("I13", f"a read of {key} at {index} shows {value!r}")
        self.seen_index = max(self.seen_index, index)

    def finished(self) -> None:
        """At the end, healed: every member of the membership in force has the same state, and nothing is lost."""
        world = self.world
        for host in world.members_within_reach():
            if host.machine.index != len(self.committed) - 1:
                raise Violation("liveness", f"{host.name} is at {host.machine.index} of {len(self.committed) - 1}")
        for request, index in self.acknowledged.items():
            if self.executed.get(request, index + 1) > index:
                raise Violation("I12", f"acknowledged request {request} is lost")
