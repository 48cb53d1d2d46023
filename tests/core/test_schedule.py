"""Placement: who gets which agent, and why the others wait."""

from pistage.core.model import AgentInfo, Capacity
from pistage.core.plan import Constraint, Resources
from pistage.core.schedule import Candidate, Room, View, WaitingTask, decide, is_met

NOW = 1_000


def an_agent(name: str = "a1", **given: object) -> Candidate:
    options = {"runtimes": ("docker",), "labels": {}, "ignores_images": False, "slots": 4, "memory_bytes": 1 << 30}
    options |= {"is_connected": True, "is_draining": False} | given
    info = AgentInfo(
        id=name, name=name, incarnation="i", version="1", capacity=Capacity(cpus_milli=4000, memory_bytes=1 << 30),
        **{key: options[key] for key in ("runtimes", "labels", "ignores_images")},  # type: ignore[arg-type]
    )  # fmt: skip
    free = Room(cpus_milli=4000, memory_bytes=options["memory_bytes"], gpus=0, slots=options["slots"])  # type: ignore[arg-type]
    return Candidate(
        info=info, epoch=1, free=free, is_draining=bool(options["is_draining"]),
        is_connected=bool(options["is_connected"]),
    )  # fmt: skip


def a_waiting(name: str = "t", **given: object) -> WaitingTask:
    options: dict[str, object] = {
        "run_id": "r", "name": name, "gang": None, "priority": 0, "queued_at": 1, "ready_at": 1,
        "needs_images": True, "needs_containers": False, "resources": Resources(),
    }  # fmt: skip
    return WaitingTask(**(options | given))  # type: ignore[arg-type]


def placed(agents: list[Candidate], tasks: list[WaitingTask]) -> dict[str, str]:
    decision = decide(View(agents=tuple(agents), waiting=tuple(tasks)), NOW)
    return {placement.task: placement.agent_id for placement in decision.placements}


def reason(agents: list[Candidate], task: WaitingTask) -> str:
    decision = decide(View(agents=tuple(agents), waiting=(task,)), NOW)
    assert not decision.placements
    return decision.reasons["r", task.name]


def test_the_emptiest_agent_is_chosen() -> None:
    assert placed([an_agent("a1", slots=1), an_agent("a2", slots=3)], [a_waiting()]) == {"t": "a2"}


def test_one_decision_fills_agents_no_further_than_they_have_room() -> None:
    tasks = [a_waiting(f"t{n}") for n in range(5)]
    assert placed([an_agent("a1", slots=2), an_agent("a2", slots=1)], tasks) == {"t0": "a1", "t1": "a1", "t2": "a2"}


def test_priority_goes_before_age() -> None:
    tasks = [a_waiting("old", queued_at=1), a_waiting("urgent", queued_at=2, priority=5)]
    assert placed([an_agent(slots=1)], tasks) == {"urgent": "a1"}


def test_an_agent_that_a_task_failed_on_is_taken_last_but_taken() -> None:
    task = a_waiting(tried_on=frozenset({"a1"}))
    assert placed([an_agent("a1"), an_agent("a2", slots=1)], [task]) == {"t": "a2"}
    assert placed([an_agent("a1")], [task]) == {"t": "a1"}


def test_tasks_of_a_gang_go_to_one_agent_in_one_decision() -> None:
    tasks = [a_waiting(f"t{n}", gang="g1") for n in range(3)]
    assert len(set(placed([an_agent("a1"), an_agent("a2")], tasks).values())) == 1


def test_a_gang_stays_where_its_networks_are() -> None:
    task = a_waiting(gang="g1", bound_to="a2")
    assert placed([an_agent("a1"), an_agent("a2", slots=1)], [task]) == {"t": "a2"}
    assert "another agent has" in reason([an_agent("a1")], task)


def test_a_task_waits_out_its_backoff_and_the_decision_says_when_to_look_again() -> None:
    decision = decide(
        View(agents=(an_agent(),), waiting=(a_waiting(ready_at=NOW + 5), a_waiting("u", ready_at=NOW + 9))), NOW
    )
    assert (decision.placements, decision.wake_at) == ((), NOW + 5)


def test_each_obstacle_is_named() -> None:
    label = Constraint(key="gpu", operator="in", values=("true",))
    assert reason([], a_waiting()) == "no agent has registered"
    assert reason([an_agent(is_connected=False)], a_waiting()) == "a1: not connected"
    assert reason([an_agent(is_draining=True)], a_waiting()) == "a1: draining"
    assert reason([an_agent(runtimes=("sandbox",))], a_waiting()) == "a1: has no engine to run images with"
    assert reason([an_agent()], a_waiting(constraints=(label,))) == "a1: label gpu=true is missing"
    memory = a_waiting(resources=Resources(memory_bytes=4 << 30))
    assert reason([an_agent()], memory) == "a1: 1.0 of 4.0 GiB free"
    assert reason([an_agent(slots=0)], a_waiting()) == "a1: 0 of 1 places free"


def test_a_sandbox_that_ignores_images_takes_them_but_no_networks() -> None:
    sandbox = an_agent(runtimes=("sandbox",), ignores_images=True)
    assert placed([sandbox], [a_waiting()]) == {"t": "a1"}
    assert reason([sandbox], a_waiting(needs_containers=True)) == "a1: has no engine for networks, volumes and services"


def test_constraints_read_labels_as_written() -> None:
    labels = {"zone": "a", "ssd": ""}
    assert is_met(Constraint(key="zone", operator="in", values=("a", "b")), labels)
    assert is_met(Constraint(key="zone", operator="not_in", values=("c",)), labels)
    assert is_met(Constraint(key="ssd", operator="present"), labels)
    assert is_met(Constraint(key="spot", operator="absent"), labels)
    assert not is_met(Constraint(key="zone", operator="absent"), labels)


def test_a_task_that_only_waits_its_turn_is_told_from_one_that_no_agent_could_take() -> None:
    tasks = (
        a_waiting("busy"),
        a_waiting("huge", resources=Resources(cpus_milli=64_000)),
        a_waiting("labelled", constraints=(Constraint(key="gpu", operator="present"),)),
    )
    decision = decide(View(agents=(an_agent(slots=0), an_agent("a2", is_connected=False)), waiting=tasks), NOW)
    assert {task for _, task in decision.hopeless} == {"huge", "labelled"}
