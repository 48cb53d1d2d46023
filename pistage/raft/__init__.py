"""Consensus over opaque bytes: a pure core, and how to drive it.

`Node.step(event)` takes one thing that happened and returns what is to be done about it. The core has no clock, socket,
disk, thread or chance of its own; given the same events it does the same. Sections in the comments are those of "In
Search of an Understandable Consensus Algorithm" (the paper) and "Consensus: Bridging Theory and Practice" (Ongaro's
dissertation).

**Writing a driver.** One loop owns the node; nothing else calls it. A turn of the loop is:

1. Take what has happened as events, and pass each to `step`. Drain what has arrived before passing a `Tick`: after a
   stall the answers that lie in the inbox are news, and an election held before reading them is a mistake. Pass one
   `Tick` however many were missed. Pass all proposals that wait as one `Propose`: one write, one message a follower.
2. Carry out the actions in the order they came, `Persist` before anything else of its step:

   `Persist`      Put it into the queue of the disk's thread. That thread takes all that waits, writes it in order in
                  one transaction and syncs; then `Durable` of the newest is enough. A write that fails for want of
                  space is tried again, as it is, with everything behind it waiting: tell `DiskFault(full)`. Any
                  other failure: `DiskFault(failed)`; never write again in this process.
   `Send`         With `after_seq`: hold it until that write is durable. Without: now, past the disk's queue. Messages
                  may be lost, delayed, repeated and reordered by whoever carries them; they may not be changed.
   `Apply`        Queue it for the state's thread; apply every entry, in order, exactly once, together with its index
                  in one transaction. `config` and `noop` entries too: they count, and the membership is kept in the
                  state so that a snapshot can say it. Then `Applied`, with the digest of the state after every entry
                  (each of the digest before, the entry and what it did): masters that differ find out, and one stops.
   `Reply`        The proposal is at (`index`, `term`): keep its caller until the entry at that index is applied, and
                  answer with the outcome if the term is the same, with "lost, try again" if it is not. When `Role`
                  says that this node leads no longer, callers may be told that the outcome is not known.
   `ReadReady`    Wait until the state is at `index`, then read.
   `InstallSnap`  Fetch a snapshot from that node (its newest will do), verify it, lay it beside the state, and read its
                  `Base` from the file itself. Then `SnapInstalled`. It is taken iff the answer holds a `Persist` with
                  `install`: the transaction that empties the log also makes the new state the current one. Finish or
                  drop every earlier `Apply` before. If there is no such `Persist`, remove the files.
   `Role`         For those who wait for a leader, or dispatch only on one.
   `Fatal`        Write the reason down and end the process.

3. When the state is durable through some index (a checkpoint has completed), pass `Compact`, some entries short of it,
   so that a follower that was away for a moment needs no snapshot.

**Starting.** Read the hard state, the base and the entries from the disk, the applied index and its digest from the
state; `Node` refuses a state and a log that do not belong together. Nothing else is remembered: the commit index is
learnt again. Damage that the disk shows (a broken chain of checksums, a log that ends before what was known durable) is
not for the core to mend: the node must be removed and come back under a new name as a learner, because a voter that
forgets is two. So must one that ended with a `Fatal` whose `is_state_damaged` is set: start it no more on that state.

**What is promised**, if writes are durable when `Durable` says so: at most one leader a term; a committed entry is
never lost or replaced; `Apply` is the same sequence on every node; a `ReadReady` index is at or past every entry that
was applied anywhere before the `Read`. Without a working majority nothing happens; nothing wrong happens either.
"""

from pistage.raft.actions import (
    Action,
    Apply,
    Fatal,
    HardState,
    InstallSnap,
    Persist,
    ReadReady,
    Refusal,
    Reply,
    Role,
    RoleName,
    Send,
)
from pistage.raft.events import (
    Applied,
    Compact,
    Conf,
    DiskFault,
    Durable,
    Event,
    Fault,
    Propose,
    Read,
    Recv,
    SnapFailed,
    SnapInstalled,
    Tick,
    Transfer,
)
from pistage.raft.log import Base
from pistage.raft.messages import MESSAGE_KINDS, Append, Entry, Kind, Message
from pistage.raft.node import Node
from pistage.raft.quorum import Change, ChangeKind, Config
from pistage.raft.settings import Settings

__all__ = [
    "MESSAGE_KINDS",
    "Action",
    "Append",
    "Applied",
    "Apply",
    "Base",
    "Change",
    "ChangeKind",
    "Compact",
    "Conf",
    "Config",
    "DiskFault",
    "Durable",
    "Entry",
    "Event",
    "Fatal",
    "Fault",
    "HardState",
    "InstallSnap",
    "Kind",
    "Message",
    "Node",
    "Persist",
    "Propose",
    "Read",
    "ReadReady",
    "Recv",
    "Refusal",
    "Reply",
    "Role",
    "RoleName",
    "Send",
    "Settings",
    "SnapFailed",
    "SnapInstalled",
    "Tick",
    "Transfer",
]
