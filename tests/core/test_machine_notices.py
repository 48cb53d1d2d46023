"""Notices in the state machine: which a run's end makes due, how each ends, and what bounds them."""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pistage.core import commands as c
from pistage.core import commands_of_notices as n
from pistage.core import limits, machine
from pistage.core.machine import Outcome
from pistage.core.notices import End, Notify, Receiver, Verdict
from pistage.errors import Code, PistageError
from tests.core.plans import a_plan

URL = "https://example.org/x"


class State:
    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        machine.create_tables(self.db)
        self.index = 0

    def apply(self, command: c.Command) -> Outcome:
        self.index += 1
        outcome = machine.apply(self.db, self.index, command)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def put(self, name: str, **given: Any) -> None:
        receiver = Receiver(url=URL, **given)
        self.apply(n.PutReceiver(at=self.index, project="default", owner="o", name=name, receiver=receiver))

    def run(self, run_id: str, *notify: Notify, name: str = "night") -> Outcome:
        """A run that is cancelled at once."""
        plan = replace(a_plan(name=name), notify=notify)
        self.apply(c.SubmitRun(at=self.index, run_id=run_id, project="default", owner="o", plan=plan, source=""))
        return self.apply(c.CancelRun(at=self.index + 1_000, run_id=run_id, owner="o", reason="enough"))

    def record(self, run_id: str, number: int, verdict: Verdict, **given: Any) -> Outcome:
        command = n.RecordTry(
            at=self.index, run_id=run_id, position=1, number=number, verdict=verdict, **given
        )  # fmt: skip
        return self.apply(command)

    def rows(self, run_id: str, columns: str = "receiver, notify, state, reason") -> list[tuple[Any, ...]]:
        sql = f"SELECT {columns} FROM delivery WHERE run_id = ? ORDER BY position"
        return self.db.execute(sql, (run_id,)).fetchall()


@pytest.fixture
def state() -> Iterator[State]:
    made = State()
    yield made
    made.db.close()


def test_the_command_that_ends_a_run_notes_who_is_to_be_told(state: State) -> None:
    state.put("all", on=(End.CANCELLED,))
    state.put("others", on=tuple(End), pipelines=("day",))
    state.put("failures")
    state.put("named", on=(End.CANCELLED,), pipelines=())
    outcome = state.run("r", Notify(url=URL, on=(End.CANCELLED,)), Notify(url=URL + "2"), Notify(to="named"))
    assert state.rows("r") == [(None, 0, "waiting", ""), ("named", 2, "waiting", ""), ("all", None, "waiting", "")]
    assert outcome.deliveries == (("r", 1), ("r", 2), ("r", 3))
    assert state.rows("r", "tries, due_at - created_at, ended_at") == [(0, 0, None)] * 3


def test_who_asks_by_itself_and_is_named_is_told_once(state: State) -> None:
    state.put("ops", on=tuple(End))
    state.run("r", Notify(to="ops", on=(End.CANCELLED,), body="x"))
    state.run("s", Notify(to="ops", on=(End.FAILED,)))
    assert state.rows("r") == [("ops", 0, "waiting", "")]
    assert state.rows("s") == [("ops", None, "waiting", "")]


def test_a_run_that_ends_when_it_is_submitted_or_retried_is_told_of_too(state: State) -> None:
    state.put("ops", on=(End.SUCCEEDED,))
    plan = a_plan()
    done = replace(plan, tasks=tuple(replace(task, skip_reason="it is done") for task in plan.tasks))
    state.apply(c.SubmitRun(at=1, run_id="r", project="default", owner="o", plan=done, source=""))
    state.apply(c.RetryRun(at=2, run_id="s", retry_of="r", owner="o"))
    assert [state.rows(run_id, "receiver, state") for run_id in "rs"] == [[("ops", "waiting")]] * 2


def test_where_nobody_asks_there_is_nothing(state: State) -> None:
    assert state.run("r").deliveries == ()
    assert state.rows("r") == []


def test_a_receiver_that_is_not_there_is_given_up_with_the_reason(state: State) -> None:
    state.run("r", Notify(to="nobody", on=(End.CANCELLED,)))
    assert state.rows("r") == [("nobody", 0, "given_up", "there is no receiver 'nobody'")]


def test_each_try_is_recorded_once_and_in_order(state: State) -> None:
    state.put("ops", on=tuple(End))
    state.run("r")
    state.record("r", 1, Verdict.WAITING, due_at=5_000, status=500, reason="x" * 9_999)
    ((tries, due_at, ended_at, status, reason),) = state.rows("r", "tries, due_at, ended_at, status, reason")
    assert (tries, due_at, ended_at, status, len(reason)) == (1, 5_000, None, 500, limits.REASON_CHARS_MAX)
    for number in (1, 3):
        with pytest.raises(PistageError, match="not the next one") as refused:
            state.record("r", number, Verdict.DELIVERED)
        assert refused.value.code is Code.CONFLICT
    state.record("r", 2, Verdict.DELIVERED, status=200)
    assert state.rows("r", "state, tries, due_at, status, reason") == [("delivered", 2, None, 200, "")]
    with pytest.raises(PistageError):
        state.record("r", 3, Verdict.WAITING, due_at=9)


def test_a_try_that_would_neither_end_nor_be_due_cannot_be_proposed() -> None:
    for verdict, due_at in ((Verdict.WAITING, None), (Verdict.DELIVERED, 5), (Verdict.GIVEN_UP, 5)):
        with pytest.raises(ValueError, match="due"):
            n.RecordTry(at=1, run_id="r", position=1, number=1, verdict=verdict, due_at=due_at)


def test_a_receiver_that_is_removed_takes_what_waits_with_it_and_no_other(state: State) -> None:
    state.put("ops", on=tuple(End))
    state.put("chat", on=tuple(End))
    state.run("r")
    state.run("s")
    state.record("r", 1, Verdict.DELIVERED)  # to chat
    outcome = state.apply(n.DeleteReceiver(at=9, project="default", name="ops"))
    assert outcome.deliveries == (("r", 2), ("s", 2))
    assert state.rows("r", "receiver, state, reason") == [
        ("chat", "delivered", ""), ("ops", "given_up", "its receiver was removed"),
    ]  # fmt: skip
    assert state.rows("s", "receiver, state") == [("chat", "waiting"), ("ops", "given_up")]
    with pytest.raises(PistageError, match="no receiver"):
        state.apply(n.DeleteReceiver(at=9, project="default", name="ops"))


def test_of_too_many_that_wait_the_oldest_are_given_up(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NOTICES_WAITING_MAX", 3)
    state.put("ops", on=tuple(End))
    for number in range(5):
        state.run(f"r{number}")
    found = [state.rows(f"r{number}", "state")[0][0] for number in range(5)]
    assert found == ["given_up", "given_up", "waiting", "waiting", "waiting"]
    assert "more than 3 notices wait" in state.rows("r0", "reason")[0][0]


def test_a_project_has_so_many_receivers_and_no_more(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECEIVERS_MAX", 2)
    for name in ("a", "b", "a"):
        state.put(name)
    with pytest.raises(PistageError, match="at most 2"):
        state.put("c")


def test_the_same_log_gives_the_same_notices(state: State) -> None:
    other = State()
    deeds: list[Callable[[State], object]] = [
        lambda one: one.put("ops", on=tuple(End), headers={"B": "1", "A": "2"}),
        lambda one: one.run("r", Notify(to="x", on=tuple(End)), Notify(url=URL, on=tuple(End))),
        lambda one: one.run("s"),
        lambda one: one.apply(n.DeleteReceiver(at=9, project="default", name="ops")),
    ]
    for deed in deeds:
        deed(state)
        deed(other)
    assert list(state.db.iterdump()) == list(other.db.iterdump())
    other.db.close()


def test_rows_that_cannot_be_read_keep_no_run_from_ending(state: State) -> None:
    state.put("bad", on=tuple(End))
    state.put("ops", on=tuple(End))
    state.db.execute("UPDATE receiver SET spec = '{' WHERE name = 'bad'")
    for poison in ("{{", '{"notify": 7}', '{"notify": [{"nope": 1}]}', "[]", '"x"'):
        plan = replace(a_plan(name="night"), notify=(Notify(url=URL, on=tuple(End)),))
        run_id = f"r{state.index}"
        state.apply(c.SubmitRun(at=1, run_id=run_id, project="default", owner="o", plan=plan, source=""))
        state.db.execute("UPDATE run SET plan = ? WHERE id = ?", (poison, run_id))
        state.apply(c.CancelRun(at=2, run_id=run_id, owner="o", reason="enough"))
        assert state.rows(run_id, "receiver, state") == [("ops", "waiting")], poison
