"""A simulator of whole groups: the real core, a driver as its guide asks for, and everything that can go wrong.

A seed is a world: 1–5 masters, a mix of faults, clients, an operator who replaces what is damaged and, in one seed of
ten, the real state machine on SQLite with 1–20 agents. Everything that happens comes from one heap and from `Random`s
made of the seed, so that a seed is a bug report: `python -m tests.sim replay SEED` shows it again, `shrink` makes it
small, `mutants` puts known bugs into the core and says which seed finds them. At the end of each world all faults are
healed, and a leader that stays, a fresh write, equal states and an end to all work are asked for within bounded time.

**Faults**: messages dropped, doubled, delayed, reordered and sent again much later; partitions with two sides, in one
direction, with a bridge, flapping; processes that crash, before and after each write and apply and with a snapshot in
hand, or stand still; power loss (the state's tail goes, of a write any beginning stays); disks that are slow, full or
fail; bits that flip in a log and are found at the next start; states that rot and are found by their digests; clocks
that run up to a fifth wrong and wall clocks that jump by hours; members that come, go and are replaced; masters of two
versions; clients that restart; agents that crash, with and without their journal, stand still and lose answers.

**Invariants**, and where each is checked:

| | | |
|---|---|---|
| I1 | one leader a term, by real votes | `Checker._role`, `promised` |
| I2 | a leader only appends | `Checker._persist` |
| I3 | equal index and term, equal entry and predecessor | `Checker._persist` |
| I4 | a leader has every committed entry | `Checker._role` |
| I5 | equal index, equal state; a damaged one is found, and only that one | `Checker.applied`, `fatal`; `runs` |
| I6 | what is committed stays; only an entry of its own term is counted | `Checker._commit`, `applied` |
| I7 | committed is durable on a majority | `Checker._quorum` |
| I8 | term, vote and commit never go back, crashes included | `Checker.stepped`, `started`, `written` |
| I9 | snapshot ≤ applied ≤ commit ≤ last, on the disk, too | `Checker.stepped`, `starting`, `written` |
| I10 | no promise before it is durable | `Checker.promised` |
| I11 | one change of one member at a time, after a commit of the term | `Checker._config`, `_commit` |
| I12 | an acknowledged request was carried out, once, and is not lost | `Checker.applied`, `write_acknowledged` |
| I13 | a read shows all that was acknowledged before it began | `Checker.read_served` |
| I14 | one live attempt, one success a task; a result that was taken stays | `Records` |
| I15 | nothing is assigned to, or lives on, an agent that is gone | `Records` |

I16 (a slot of a schedule fires once) is not checked: nothing fires schedules yet. What clients saw is also given to a
checker of linearizability that knows nothing of logs.
"""
