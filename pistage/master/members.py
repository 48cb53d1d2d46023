"""Who the masters are: the leader's care for their addresses, versions and promotions, and how one comes in.

A master comes in as a learner: it gets the log and decides nothing until it has caught up. One that sits where a member
used to sit takes that member's place: what it replaces is gone, with its data.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from pistage import raft, wire
from pistage.core.commands import FoundCluster, RaiseVersion, RegisterMaster
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.founding import fetch_hello
from pistage.master.peers import UNREACHABLE, Peers
from pistage.master.replica import Replica

log = logging.getLogger(__name__)

JOIN_PATH: Final = "/raft/v1/join"
_LOOK_EVERY_S = 0.5
_ANNOUNCE_EVERY_S = 1.0
_ASK_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Registration:
    """What the state knows of a master."""

    url: str
    version: str
    command_version: int


class Members:
    """`serve` on every master; `lead` on the one that leads."""

    def __init__(self, replica: Replica, peers: Peers, *, seeds: Sequence[str]) -> None:
        self._replica, self._peers, self._seeds = replica, peers, {seed.rstrip("/") for seed in seeds}
        self._joining = asyncio.Lock()
        self.registered: Mapping[str, Registration] = {}
        self.is_taken_out = False  # as far as is known
        peers.learn(replica.identity.founders)

    # --- on every master -----------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Learn where the others are; a master that is no member yet asks to become one."""
        while True:
            await self._look()
            if not self._replica.membership.members and self._replica.leader is None:
                await self._announce()
                await asyncio.sleep(_ANNOUNCE_EVERY_S)
            elif self._is_alone():
                await self._ask_around()
                await asyncio.sleep(_ASK_EVERY_S)
            else:
                self.is_taken_out = False
                await asyncio.sleep(_LOOK_EVERY_S)

    def _is_alone(self) -> bool:
        contact_s = self._replica.leader_contact_s
        return self._replica.leader is None and (contact_s is None or contact_s > _ASK_EVERY_S)

    async def _ask_around(self) -> None:
        """Where the others are, who may all have moved, and whether we are in: what says that this master was taken
        out need not reach it any more (§4.2.2).
        """
        urls = ({one.url for one in self.registered.values()} | self._seeds) - {self._peers.hello().url}
        hellos = await asyncio.gather(*(fetch_hello(self._peers.http, url) for url in sorted(urls)))
        ours = self._replica.identity
        told = [one for one in hellos if isinstance(one, wire.PeerHello) and one.group_id == ours.group_id]
        self._peers.learn({one.node_id: one.url for one in told})
        is_taken_out = any(one.members and ours.node_id not in one.members for one in told)
        if is_taken_out and not self.is_taken_out:
            log.error(
                "this master was taken out of the group: stop it, or `pistage cluster join` brings it back as new"
            )
        self.is_taken_out = is_taken_out

    async def _look(self) -> None:
        async with self._replica.reader.snapshot() as snapshot:
            rows = await reads.masters(snapshot)
        before = self.registered
        self.registered = {row["id"]: Registration(row["url"], row["version"], row["command_version"]) for row in rows}
        # Only what is new: a master that has moved has said so itself, perhaps, since it was registered.
        self._peers.learn({node_id: one.url for node_id, one in self.registered.items() if before.get(node_id) != one})
        self._peers.connect(self._replica.membership.members)

    async def _announce(self) -> None:
        ours = wire.pack_hello(self._peers.hello())
        for url in sorted(self._seeds - {self._peers.hello().url}):
            try:
                timeout = aiohttp.ClientTimeout(total=30)
                async with self._peers.http.post(url + JOIN_PATH, data=ours, timeout=timeout) as response:
                    if response.status == 200:
                        return
                    log.warning("%s does not let this master in: %s", url, (await response.text())[:500])
            except UNREACHABLE as error:
                log.warning("%s cannot be asked to let this master in: %s", url, error or type(error).__name__)

    # --- on the leader -------------------------------------------------------------------------------------------

    async def lead(self) -> None:
        """Keep addresses and versions true and promote who has caught up, until cancelled."""
        while True:
            try:
                await self._look()
                await self._register_all()
                await self._raise_version()
                await self._promote()
            except PistageError as refusal:  # a change of leader, or of the membership by somebody else
                log.debug("members: %s", refusal)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def found(self) -> None:
        """Give the cluster its id, where it has none."""
        async with self._replica.reader.snapshot() as snapshot:
            if await reads.cluster_id(snapshot):
                return
        await self._replica.propose(FoundCluster(at=wire.now_ms(), cluster_id=self._replica.identity.group_id))

    async def _register_all(self) -> None:
        members = self._replica.membership.members
        known = {node_id: hello for node_id, hello in self._peers.hellos.items() if node_id in members}
        for node_id, hello in (known | {self._replica.node_id: self._peers.hello()}).items():
            await self._register(node_id, hello)

    async def _register(self, node_id: str, hello: wire.PeerHello) -> None:
        told = Registration(hello.url, hello.version, hello.command_version)
        if self.registered.get(node_id) != told:
            await self._replica.propose(
                RegisterMaster(
                    at=wire.now_ms(),
                    node_id=node_id,
                    url=hello.url,
                    version=hello.version,
                    command_version=hello.command_version,
                )
            )
            self._peers.learn({node_id: hello.url})

    async def _raise_version(self) -> None:
        members = self._replica.membership.members
        if not all(node_id in self.registered for node_id in members):
            return
        common = min(self.registered[node_id].command_version for node_id in members)
        if common > self._replica.command_version:
            await self._replica.propose(RaiseVersion(at=wire.now_ms(), command_version=common))
            log.info("every master knows the commands of version %d now", common)

    async def _promote(self) -> None:
        for learner in self._replica.membership.learners:
            if self._replica.heard.get(learner):
                await self._replica.change_membership(raft.Change(kind=raft.ChangeKind.PROMOTE, node_id=learner))
                log.info("master=%s has caught up and votes from now on", learner)

    async def join(self, hello: wire.PeerHello) -> None:
        """Let this master in as a learner, in place of the member at its URL if there is one. May be asked again."""
        if hello.group_id != self._replica.identity.group_id:
            raise PistageError(Code.CONFLICT, "that master belongs to another group", hint="see pistage cluster join")
        if hello.command_version < self._replica.command_version:
            raise PistageError(
                Code.CONFLICT,
                f"that master knows commands up to version {hello.command_version}, the cluster is at"
                f" {self._replica.command_version}",
                hint="upgrade it first",
            )
        async with self._joining:
            await self._look()
            members = self._replica.membership.members
            if hello.node_id in members:
                return
            replaced = [one for one in members if self._url_of(one) == hello.url]
            self._refuse_to_replace_the_living(hello, replaced)
            for node_id in replaced:
                await self.remove(node_id)
            await self._register(hello.node_id, hello)
            await self._replica.change_membership(raft.Change(kind=raft.ChangeKind.ADD_LEARNER, node_id=hello.node_id))
            log.info("master=%s at %s comes in", hello.node_id, hello.url)

    def _refuse_to_replace_the_living(self, hello: wire.PeerHello, replaced: Sequence[str]) -> None:
        """A wrong URL in a configuration must not cost a master that lives."""
        if any(node_id in self._replica.heard or node_id == self._replica.node_id for node_id in replaced):
            raise PistageError(
                Code.CONFLICT,
                f"the master at {hello.url} is alive",
                hint="set listen and advertise of the new one to a URL of its own",
            )

    async def remove(self, node_id: str) -> None:
        """Take a master out. `conflict` where those who are left could not decide anything."""
        if node_id == self._replica.node_id:
            voters = [voter for voter in self._replica.membership.voters if voter != node_id]
            if not voters:
                raise PistageError(Code.CONFLICT, "this is the only master", hint="stop it instead")
        await self._replica.change_membership(raft.Change(kind=raft.ChangeKind.REMOVE, node_id=node_id))
        self._peers.forget(frozenset(self._replica.membership.members))
        log.info("master=%s was taken out", node_id)

    def _url_of(self, node_id: str) -> str | None:
        """Where a member is reached: as registered, or before that as it said to us itself."""
        if node_id == self._replica.node_id:
            return self._peers.hello().url
        return self.registered[node_id].url if node_id in self.registered else self._peers.url_of(node_id)

    def resolve(self, reference: str) -> str:
        """The node id that an id, a unique prefix of one, or a URL means; `not_found` or `conflict` otherwise."""
        members = self._replica.membership.members
        found = [
            node_id
            for node_id in members
            if node_id.startswith(reference.lower()) or self._url_of(node_id) == reference.rstrip("/")
        ]
        if reference in found:
            return reference
        if not reference or not found:
            raise PistageError(Code.NOT_FOUND, f"no master {reference!r}", hint="see pistage cluster status")
        if len(found) > 1:
            raise PistageError(Code.CONFLICT, f"{reference!r} begins the id of several masters", hint="give more of it")
        return found[0]
