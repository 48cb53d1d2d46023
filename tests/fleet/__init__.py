"""A simulator of fleets: the real `Dispatch`, `Losses`, scheduler and state machine, and agents that go wrong.

A seed is a world: masters of which one leads, a few to thousands of agents, people who submit, cancel, retry and
drain, and a mix of faults. The log is taken as given, because `tests.sim` is about it: commands are applied in one
order, some time after they were proposed, and what a deposed leader had on its way may be lost. Time is simulated:
everything runs on an event loop whose clock jumps to the next thing that happens, so a seed is a bug report: `python
-m tests.fleet --seeds SEED` shows it again, and `--mutant NAME` puts a known bug into the program before.

**Real**: `Dispatch`, `Losses`, the queries of `reads`, `decide`, `Explainer`, `machine`, the agent's `Reports`,
messages.
**Modelled after what it stands for**: the replica (`cluster`), the sessions (`desk`), links, and the agent with its
journal, its lease and its engine (`agents`), each as careful as the real one, and no more.

**Faults**: machines that crash with and without their disks, agents that crash while their containers run on,
machines that stand still, partitions of one or many agents in one direction or both, connections that break with
answers in them, clocks that run a tenth wrong, agents that leave in order, come back as others, never come back;
leaders that crash, are cut off without knowing it, hand over, or commit slowly.

| | | |
|---|---|---|
| I14 | one live attempt and one success a task, a result that was taken stays | `Checker._check_run`, `acknowledged` |
| I15 | nothing is assigned to, or lives on, a lost agent or an old epoch | `Checker._assigned`, `_nothing_lives_on` |
| room | no agent has more reserved than it offers, nor runs more than that | `Checker._assigned`, `Ground` |
| fit | labels, runtimes, gangs | `Checker._assigned` |
| limits | of concurrency groups and queues | `Checker._begun`, `_submitted` |
| overlap | a task runs once at a time; its plan, or an outage beyond the promise, may allow more | `Ground` |
| view | the leader's view is the one that a new leader would make, and decides the same | `Views` |
| idle | nothing waits that could be placed, and each obstacle that is named is one | `Views` |
| stuck | once all is healed every run ends, but for those that no agent could take | `World.settle` |
| fairness, ageing | shares of equal owners; the longest wait of low priority | `fairness` |

I16 (a slot of a schedule fires once) is not checked: nothing fires schedules yet.
"""
