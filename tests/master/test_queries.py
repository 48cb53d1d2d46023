"""Queries: what is asked often is found by an index, however many runs there have been."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Sequence

from pistage.core import machine
from pistage.master import reads
from pistage.master.api import views
from pistage.master.state import Snapshot


class Explained(Snapshot):
    """Gathers SQLite's plan for each query instead of a view of anything."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:")
        machine.create_tables(self.db)
        self.steps: list[str] = []

    async def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[sqlite3.Row]:
        plan = self.db.execute("EXPLAIN QUERY PLAN " + sql, parameters).fetchall()  # type: ignore[arg-type]
        self.steps += [step for *_, step in plan]
        return []


async def test_a_page_of_runs_is_read_in_order_and_not_sorted() -> None:
    for state, name, cursor in itertools.product((None, "failed"), (None, "n"), (None, "x")):
        explained = Explained()
        await views.list_runs(explained, state=state, name=name, project="p", limit=9, cursor=cursor)
        assert not any(step.startswith(("SCAN", "USE TEMP")) for step in explained.steps), explained.steps
        if name is None:
            narrow = "project=? AND state=?" if state else "project=?"
            assert any(narrow in step for step in explained.steps), explained.steps


async def test_an_agents_runs_are_found_among_the_live_ones_and_not_in_its_past() -> None:
    explained = Explained()
    await reads.live_runs(explained, "a1")
    assert any("run_by_state (state=?)" in step for step in explained.steps), explained.steps
    assert not any("attempt_by_agent" in step for step in explained.steps), explained.steps
    await reads.live_attempts(explained, "a1")
    assert any("attempt_by_agent (agent_id=? AND state=?)" in step for step in explained.steps), explained.steps
