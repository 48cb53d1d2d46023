"""Faults on purpose, each known from somebody's Raft: the simulator must find every one of them.

It imports nothing of ours but `mutating`, because it has to come first.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.mutating import Edit, install

CORE = "pistage.raft."
DRIVER = "tests.sim."
STATE = "pistage.core.machine."


@dataclass(frozen=True, slots=True)
class Mutant:
    """A line or two of the source, replaced."""

    name: str
    bug: str
    edits: tuple[Edit, ...]

    def install(self) -> None:
        """From here on this process has the fault; RuntimeError if its modules are imported already."""
        install(self.edits)


def _core(name: str, bug: str, *edits: Edit) -> Mutant:
    return Mutant(name, bug, tuple((CORE + module, old, new) for module, old, new in edits))


def _driver(name: str, bug: str, *edits: Edit) -> Mutant:
    return Mutant(name, bug, tuple((DRIVER + module, old, new) for module, old, new in edits))


def _state(name: str, bug: str, *edits: Edit) -> Mutant:
    return Mutant(name, bug, tuple((STATE + module, old, new) for module, old, new in edits))


_IN_LEASE = "    if node.leadership is not None:\n        return True\n    return node.leader is not None"

MUTANTS = (
    # --- promises -----------------------------------------------------------------------------------------------
    _core(
        "vote-before-durable",
        "term and vote not durable before the reply (PySyncObj #84)",
        ("election", "    node.promise(answer)", "    node.send(answer)"),
    ),
    _core(
        "vote-not-written",
        "the vote is forgotten at a restart (raftos)",
        ("node", "changed = hard_state if", "changed = HardState(term=self.term) if"),
    ),
    _core(
        "ack-before-durable",
        "append acknowledged before its fsync",
        (
            "replication",
            "node.promise(m.AppendResp(src=node.id, dst=message.src, term=node.term, match_index=last_new))",
            "node.send(m.AppendResp(src=node.id, dst=message.src, term=node.term, match_index=last_new))",
        ),
    ),
    _core(
        "promises-wait-for-nothing",
        "role changes with an append in flight (canonical/raft #386)",
        ("node", "after = self.writes.newest_in_flight", "after = None"),
    ),
    _core(
        "leader-counts-unsynced",
        "acknowledged before fsync on the leader, single node (etcd #14370)",
        ("replication", "match[node.id] = node.writes.stable_index", "match[node.id] = node.log.last_index"),
    ),
    _core(
        "snapshot-ack-before-durable",
        "a snapshot acknowledged before the log is switched",
        (
            "snapshots",
            "    node.promise(m.AppendResp(src=node.id, dst=leader",
            "    node.send(m.AppendResp(src=node.id, dst=leader",
        ),
    ),
    _core(
        "aba",
        "a write of replaced entries vouches for the new ones (etcd's ABA)",
        ("node", "is_of_this_term = event.term == self.term", "is_of_this_term = True"),
        ("node", "        self.writes.truncate_from(index)\n", ""),
    ),
    _core(
        "apply-unsynced",
        "the state runs ahead of its own durable log (PySyncObj #197)",
        ("node", "ready = min(self.commit, self.writes.stable_index)", "ready = self.commit"),
    ),
    # --- elections ------------------------------------------------------------------------------------------------
    _core(
        "votes-counted-twice",
        "a repeated vote counts again (akka-raft #50)",
        (
            "election",
            "    node.votes.add(voter)\n    if node.log.config.is_quorum(node.votes):\n        leading.begin",
            "    node.votes.add(f'{node.term} {voter} {len(node.votes)}')\n"
            "    if sum(v.startswith(f'{node.term} ') for v in node.votes) > len(node.log.config.voters) // 2:\n"
            "        leading.begin",
        ),
    ),
    _core(
        "two-votes-a-term",
        "votes for whoever asks",
        ("election", "and node.vote in (None, message.src)", "and True"),
    ),
    _core(
        "vote-for-any-log",
        "votes for a log that lacks committed entries (§5.4.1)",
        ("log", "return (last_term, last_index) >= (self.last_term, self.last_index)", "return True"),
    ),
    _core(
        "log-compared-by-length",
        "the longer log wins, whatever its terms (§5.4.1)",
        (
            "log",
            "return (last_term, last_index) >= (self.last_term, self.last_index)",
            "return last_index >= self.last_index",
        ),
    ),
    _core(
        "small-majority",
        "half is taken for a majority",
        ("quorum", "in self.voters) > len(self.voters) // 2", "in self.voters) >= len(self.voters) // 2"),
    ),
    _core(
        "stale-term-credited",
        "answers of an older term count",
        (
            "node",
            "case _ if message.term < self.term:",
            "case _ if message.term < self.term and 'Resp' not in type(message).__name__:",
        ),
    ),
    _core(
        "no-check-quorum",
        "a leader that hears nobody leads on (one-way partition)",
        (
            "leading",
            "is_due = (node.now - leadership.since_tick) % node.settings.election_ticks == 0",
            "is_due = False",
        ),
    ),
    _core(
        "no-pre-vote-no-lease",
        "a removed or returning node deposes the leader",
        ("election", "            _pre_campaign(node)", "            campaign(node)"),
        ("election", _IN_LEASE, "    return False\n    return node.leader is not None"),
    ),
    _core(
        "frozen-disk-leads",
        "a leader whose disk hangs stays (Consul #22064)",
        ("leading", "    if not node.is_disk_well:", "    if False:"),
    ),
    _core(
        "removed-node-never-campaigns",
        "the only node with the log is no voter by it (§4.2.2)",
        ("election", "is_voter = node.is_voter or", "is_voter = node.is_voter or False and"),
    ),
    # --- the log --------------------------------------------------------------------------------------------------
    _core(
        "truncate-without-conflict",
        "a delayed append takes newer entries away (akka-raft #66, willemt #37)",
        (
            "replication",
            "    for n, entry in enumerate(entries):\n        if not node.log.has(entry.index, entry.term):",
            "    for n, entry in enumerate(entries):\n        if True:",
        ),
    ),
    _core(
        "commit-beyond-new",
        "commit = min(leader's, last index) instead of last new entry (copycat #265)",
        ("replication", "min(message.commit, last_new)", "min(message.commit, node.log.last_index)"),
    ),
    _core(
        "commit-old-term",
        "an entry of an older term committed by counting (figure 8)",
        (
            "replication",
            "if agreed <= node.commit or node.log.term_of(agreed) != node.term:",
            "if agreed <= node.commit:",
        ),
    ),
    _core(
        "wrong-quorum-index",
        "the quorum taken one place off (openraft #1802)",
        ("quorum", "reached[len(reached) // 2]", "reached[(len(reached) - 1) // 2]"),
    ),
    _core(
        "best-follower-commits",
        "the furthest, not the middle",
        ("quorum", "for voter in self.voters), reverse=True)", "for voter in self.voters))"),
    ),
    _core(
        "learners-count",
        "learners decide",
        ("quorum", "(match.get(voter, 0) for voter in self.voters)", "(match.get(voter, 0) for voter in self.members)"),
    ),
    _core(
        "compacted-is-a-conflict",
        "an append that begins before the log is a conflict (openraft #511)",
        (
            "replication",
            "    if prev_index < node.commit:\n",
            "    if prev_index < node.log.base.index:\n        node.truncate_from(node.log.base.index + 1)\n"
            "    if prev_index < node.commit:\n",
        ),
    ),
    _core(
        "prev-term-unchecked",
        "appends without looking at the entry before (§5.3)",
        ("replication", "if not node.log.has(prev_index, prev_term):", "if prev_index > node.log.last_index:"),
    ),
    _core(
        "heartbeat-commit-unbounded",
        "a heartbeat commits what the follower may not have",
        ("leading", "commit=min(node.commit, progress.match)", "commit=node.commit"),
    ),
    _core(
        "full-disk-drops-entries",
        "after a disk error the leader reuses index and term (canonical/raft #320)",
        (
            "node",
            "                if self.leadership is not None:\n"
            "                    self.become_follower(self.term, None)",
            "                if self.leadership is not None:\n"
            "                    self.log.truncate_from(max(self.commit, self.writes.stable_index) + 1)",
        ),
    ),
    _core(
        "starts-committed",
        "what is in the log at the start is taken for committed",
        ("node", "self.commit = applied\n", "self.commit = self.log.last_index\n"),
    ),
    _core(
        "rejects-ignored",
        "a follower that diverged is never mended",
        ("replication", "    if not is_current or", "    if True or not is_current or"),
    ),
    _core(
        "lost-appends-not-found",
        "nothing is sent again",
        ("leading", "    elif progress.match < node.log.last_index:", "    elif False:"),
    ),
    # --- reads ----------------------------------------------------------------------------------------------------
    _core(
        "read-before-term-commit",
        "ReadIndex before a commit of the term (§6.4)",
        (
            "reads",
            "not leadership.reads.confirming and node.commit >= leadership.first_index",
            "not leadership.reads.confirming",
        ),
    ),
    _core(
        "read-round-reused",
        "an answer to an older round confirms (etcd #20418)",
        ("reads", "    rounds.newest += 1\n", "    rounds.newest = 1\n"),
    ),
    _core(
        "read-without-a-round",
        "a deposed leader serves reads (go-dqlite #207)",
        ("reads", "if not node.log.config.is_quorum(answered | {node.id}):", "if False:"),
    ),
    _core(
        "read-ticket-reused",
        "an old answer serves a new read",
        ("reads", "node.rng.getrandbits(63)", "1"),
    ),
    # --- membership and snapshots -----------------------------------------------------------------------------------
    _core(
        "config-before-term-commit",
        "a membership change without a commit of the term (raft-dev, 2015)",
        ("membership", "if node.commit < leadership.first_index:", "if False:"),
    ),
    _core(
        "two-configs-at-once",
        "a second change before the first is committed",
        ("membership", "if node.log.config_index > node.commit:", "if False:"),
    ),
    _core(
        "config-not-reverted",
        "a membership outlives its truncated entry",
        ("log", "        while self._configs[-1][0] >= index:", "        while False:"),
    ),
    _core(
        "config-lost-in-compaction",
        "the log begins with an older membership (PySyncObj #133)",
        ("log", "term=term, config=self._configs[0][1])", "term=term, config=self.base.config)"),
    ),
    _core(
        "removed-leader-stays",
        "a removed leader leads on",
        ("membership", "if not node.is_voter and", "if False and"),
    ),
    # --- the driver ---------------------------------------------------------------------------------------------------
    _driver(
        "snapshot-without-its-state",
        "the index of a snapshot that was not restored is taken over (rqlite #2747)",
        ("disk", "self.base, self.checkpoint = persist.install, write.staged.copy()", "self.base = persist.install"),
        ("host", "or self.machine.index < self.disk.base.index:", "and False:"),
        (
            "host",
            "                self.machine = write.staged.copy()",
            "                self.machine.index = write.staged.index",
        ),
    ),
    _driver(
        "apply-twice-after-a-crash",
        "the applied index is not written with the data (etcd #13766)",
        (
            "host",
            "            applied=self.machine.index,",
            "            applied=max(self.disk.base.index, self.machine.index - 1),",
        ),
        ("machine", "        assert entry.index == self.index + 1", "        assert True"),
    ),
    _driver(
        "wiped-disk-votes",
        "a node with an empty disk comes back under its old name",
        (
            "host",
            "        self.node = None\n        world.count",
            "        if world.rng.random() < 0.2:\n"
            "            self.machine = world.new_machine(world.founders)\n"
            "            self.disk = Disk(raft.Base(config=world.founders), self.machine.copy())\n"
            "        self.node = None\n        world.count",
        ),
    ),
    _driver(
        "damaged-log-started",
        "what follows a bad checksum is dropped, and the node votes with the rest (SQLite's WAL)",
        (
            "host",
            '            self.condemn("damaged log refused")\n            return\n',
            "            self.disk.entries = self.disk.entries[: self.disk.flipped_at - self.disk.base.index - 1]\n"
            "            self.disk.flipped_at = None\n"
            "            if self.machine.index > self.disk.last_index:\n"
            "                self.machine = self.disk.checkpoint.copy()\n",
        ),
    ),
    _driver(
        "damaged-state-spreads",
        "a snapshot goes out without a hash of what is in it",
        ("host", "if source.machine.is_rotten:", "if False:"),
    ),
    _driver(
        "unknown-command-skipped",
        "a command of a newer version is passed over (PySyncObj WrongVer)",
        ("host", "if any(version_of(entry) > self.version for entry in self.applies):", "if False:"),
        (
            "host",
            "is_new = self.machine.apply(entry)",
            "is_known = version_of(entry) <= self.version\n"
            "            noop = raft.Entry(index=entry.index, term=entry.term, kind=raft.Kind.NOOP)\n"
            "            is_new = self.machine.apply(entry if is_known else noop)",
        ),
    ),
    _driver(
        "version-raised-early",
        "newer commands come as soon as one master knows them",
        ("world", "all(known.get(name) == 2 for name in members)", "any(known.get(name) == 2 for name in members)"),
    ),
    _driver(
        "log-clock-stands",
        "after a leader whose clock was ahead, time stands still until the others catch up",
        ("host", "newest = max(self._at + now - self._at_now, self.machine.at)", "newest = self.machine.at"),
    ),
    # --- digests ------------------------------------------------------------------------------------------------------
    _core(
        "difference-ignored",
        "a damaged state is not given up",
        ("replication", "if node.digests.differs_at is not None:", "if False:"),
    ),
    _core(
        "difference-blames-the-leader",
        "a leader stops because of one whose state differs",
        ("leading", "    if node.log.config.is_quorum(others):", "    if others:"),
    ),
    _core(
        "difference-blames-the-follower",
        "a follower stops because of a damaged leader",
        ("replication", "    if same_at >= index:", "    if True:"),
    ),
    # --- the state machine --------------------------------------------------------------------------------------------
    _state(
        "two-live-attempts",
        "a task is placed without a look at whether it waits",
        ("placing", "if task is None or task[1] != State.QUEUED or task[2]", "if task is None or task[2]"),
        (
            "placing",
            "COALESCE(started_at, ?) WHERE run_id = ? AND position = ? AND state = 'queued'\"",
            'COALESCE(started_at, ?) WHERE run_id = ? AND position = ?"',
        ),
    ),
    _state(
        "dead-epoch-assigned",
        "work for an agent that was lost, or was another then",
        (
            "placing",
            'if agent is None or agent[0] != epoch or agent[1] != "up" or agent[2]:',
            "if agent is None or agent[2]:",
        ),
    ),
    _state(
        "lost-attempts-live-on",
        "not everything that a lost agent had is ended",
        ("agents", "    for attempt_id in live:", "    for attempt_id in live[1:]:"),
    ),
    _state(
        "late-result-replaces",
        "the result of an attempt that has ended is taken again",
        ("attempts", "        elif not State(row[1]).is_terminal:", "        else:"),
        (
            "attempts",
            "\n        \" WHERE id = ? AND state IN ('queued', 'running')\",\n        (result.state",
            '\n        " WHERE id = ?",\n        (result.state',
        ),
    ),
    _state(
        "chance-in-the-state",
        "masters wait differently long before a retry",
        (
            "attempts",
            'share = int.from_bytes(hashlib.sha256(attempt_id.encode()).digest()[:4], "big") / 2**32',
            "import random; share = random.random()",
        ),
    ),
    _state(
        "request-not-remembered",
        "a submission that is repeated is made twice",
        ("submissions", "    if command.request_key is not None:", "    if False:"),
    ),
)
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
