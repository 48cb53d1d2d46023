"""The checks of a chaos session find what they are there to find: known-bad endings, each told by its name."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from pistage.core import machine
from tests.chaos.checks import Findings, check_runs, executions_in, tables_hash
from tests.chaos.load import NAME
from tests.chaos.starts import starts_in, wrong_in

_RUN = (
    "INSERT INTO run (id, project, name, number, owner, started_by, state, reason, priority, queue, concurrency_limit,"
    " notes, is_pinned, output_dropped_reason, created_at, plan, source)"
    " VALUES (?, '', ?, ?, '', '{}', ?, '', 0, '', 0, '[]', 0, '', 0, '', '')"
)
_ATTEMPT = (
    "INSERT INTO attempt (id, run_id, position, number, agent_id, fence, state, reason, runtime, assigned_at,"
    " started_at) VALUES (?, ?, 0, ?, 'a', ?, ?, '', 'host', 0, 0)"
)


class State:
    """A state with two good runs, r1 and r2, made under k1 and k2."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None)
        machine.create_tables(self.db)
        for n in (1, 2):
            self.db.execute(
                "INSERT INTO request VALUES (?, '', 0, ?)", (f"default/all/k{n}", json.dumps([[f"r{n}", n]]))
            )
            self.db.execute(_RUN, (f"r{n}", NAME, n, "succeeded"))
            self.db.execute(_ATTEMPT, (f"a{n}", f"r{n}", 1, n, "succeeded"))

    def violations(self, side: str = "k1 r1 1\nk2 r2 2\n", **acknowledged: str) -> list[str]:
        side_file = self.path.with_name("executions")
        side_file.write_text(side)
        findings = Findings()
        check_runs(self.path, {"k1": "r1", "k2": "r2"} | acknowledged, executions_in(side_file), findings)
        return findings.violations


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state.db")


def test_a_good_ending_is_good(state: State) -> None:
    assert state.violations() == []


def test_an_acknowledged_submission_that_is_lost_is_found(state: State) -> None:
    assert state.violations(k3="r3") == ["k3: acknowledged, and lost"]


def test_an_answer_that_named_another_run_is_found(state: State) -> None:
    assert state.violations(k2="r9") == ["k2: acknowledged as r9, is r2"]


def test_a_run_that_was_made_twice_is_found(state: State) -> None:
    state.db.execute(_RUN, ("r3", NAME, 3, "succeeded"))
    assert state.violations() == ["run r3: no submission made it"]


def test_a_step_that_was_carried_out_twice_is_found(state: State) -> None:
    (said,) = state.violations("k1 r1 1\nk2 r2 2\nk2 r2 2\n")
    assert "an attempt of r2 was carried out twice" in said


def test_a_second_execution_is_right_where_an_attempt_was_lost(state: State) -> None:
    state.db.execute(_ATTEMPT, ("a3", "r2", 2, 3, "lost"))
    assert state.violations("k1 r1 1\nk2 r2 2\nk2 r2 3\n") == []


def test_an_execution_under_a_fence_that_nobody_gave_is_found(state: State) -> None:
    (said,) = state.violations("k1 r1 1\nk2 r2 2\nk2 r2 7\n")
    assert "that the state does not know" in said


def test_a_success_that_never_happened_is_found(state: State) -> None:
    (said,) = state.violations("k1 r1 1\n")
    assert "was never carried out" in said


def test_a_run_that_failed_and_one_with_two_good_ends_are_found(state: State) -> None:
    state.db.execute("UPDATE run SET state = 'failed' WHERE id = 'r1'")
    state.db.execute(_ATTEMPT, ("a3", "r2", 2, 3, "succeeded"))
    first, second, *_ = state.violations("k1 r1 1\nk2 r2 2\nk2 r2 3\n")
    assert "is failed, not succeeded" in first
    assert "has 2 attempts that succeeded" in second


def test_one_byte_of_difference_in_any_table_is_found(tmp_path: Path) -> None:
    one, other = State(tmp_path / "one.db"), State(tmp_path / "other.db")
    assert tables_hash(one.path) == tables_hash(other.path)
    other.db.execute("UPDATE attempt SET reason = 'x' WHERE id = 'a2'")
    assert tables_hash(one.path) != tables_hash(other.path)


@pytest.mark.parametrize(
    ("change", "side", "said"),
    [
        ("", "k1 r1 1 9\nk2 r2 2 8\n", []),
        ("", "k1 r1 1 9\n", ["was never carried out", "carried out under []"]),
        ("", "k1 r1 1 9\nk2 r2 2 8\nk2 r2 2 9\n", ["carried out twice", "carried out under [('r2', 2), ('r2', 2)]"]),
        ("DELETE FROM run WHERE id = 'r2'", "k1 r1 1 9\nk2 r2 2 8\n", ["and lost", "is None, not succeeded"]),
        ("UPDATE attempt SET state = 'running' WHERE id = 'a2'", "k1 r1 1 9\nk2 r2 2 8\n", ["left live", "0 attempts"]),
        (_ATTEMPT.replace("?", "{}").format("'a3'", "'r2'", 2, 3, "'lost'"), "k1 r1 1 9\nk2 r2 2 8\nk2 r2 3 9\n",
         ["attempts [(2, 'succeeded'), (3, 'lost')]"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tasks_that_were_started_is_found(
    state: State, change: str, side: str, said: list[str]
) -> None:
    state.db.execute(change)
    side_file = state.path.with_name("starts")
    side_file.write_text(side)
    found = list(wrong_in(state.path, {"k1": "r1", "k2": "r2"}, starts_in(side_file)))
    assert len(found) == len(said)
    assert all(what in one for what, one in zip(said, found, strict=True)), found
