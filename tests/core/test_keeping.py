"""Keeping: what succeeded stands, unless what it rests on is made anew."""

import random

import pytest

from pistage.core.keeping import EndedTask, kept_after_failure, kept_before
from pistage.core.model import State
from pistage.errors import Code, PistageError


def ended(
    name: str, state: str = "succeeded", *needs: str, gang: str | None = None, planned: bool = False
) -> EndedTask:
    return EndedTask(name=name, state=State(state), needs=needs, gang=gang, is_skip_planned=planned)


DIAMOND = (
    ended("fetch"),
    ended("build", "succeeded", "fetch"),
    ended("lint", "failed", "fetch"),
    ended("ship", "skipped", "build", "lint"),
)


def test_what_succeeded_is_kept_and_what_failed_is_not() -> None:
    assert kept_after_failure(DIAMOND) == ("fetch", "build")


@pytest.mark.parametrize("state", ["failed", "lost", "cancelled"])
def test_what_was_lost_or_cancelled_is_tried_again_like_what_failed(state: str) -> None:
    assert kept_after_failure((ended("a"), ended("b", state))) == ("a",)


def test_what_needs_a_task_that_runs_again_runs_again_however_far_away() -> None:
    tasks = (ended("a", "failed"), ended("b", "skipped", "a"), ended("always", "succeeded", "b"), ended("c"))
    assert kept_after_failure(tasks) == ("c",)


def test_who_shares_a_volume_with_a_task_that_runs_again_runs_again_and_so_do_those_behind_it() -> None:
    tasks = (
        ended("write", gang="g1"),
        ended("read", "failed", "write", gang="g1"),
        ended("report", "succeeded", "write"),
        ended("other", gang="g2"),
        ended("another", gang="g2"),
    )
    assert kept_after_failure(tasks) == ("other", "another")


def test_a_skip_that_follows_from_nothing_failing_brings_nothing_with_it() -> None:
    tasks = (
        ended("a"),
        ended("on failure", "skipped", "a"),
        ended("tell", "succeeded", "on failure"),
        ended("x", "failed"),
    )
    assert kept_after_failure(tasks) == ("a", "tell")


def test_what_the_plan_skips_holds_nobody_up() -> None:
    tasks = (ended("a", "failed"), ended("b", "skipped", "a", planned=True), ended("c", "succeeded", "b"))
    assert kept_after_failure(tasks) == ("c",)


def test_a_run_in_which_nothing_failed_has_nothing_to_try_again() -> None:
    with pytest.raises(PistageError, match="nothing in the run has failed") as caught:
        kept_after_failure((ended("a"), ended("b", "skipped", "a")))
    assert caught.value.code is Code.CONFLICT and "--from" in str(caught.value.hint)


def test_from_a_task_it_and_what_follows_run_again_and_so_does_all_that_failed() -> None:
    assert kept_before(DIAMOND, "build") == ("fetch",)
    assert kept_before(DIAMOND, "ship") == ("fetch", "build")
    assert kept_before(DIAMOND, "fetch") == ()
    assert kept_before((ended("a"), ended("b", "succeeded", "a"), ended("c")), "b") == ("a", "c")


def test_from_a_task_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(PistageError, match="no task 'biuld'") as caught:
        kept_before(DIAMOND, "biuld")
    assert caught.value.code is Code.NOT_FOUND and "fetch, build, lint, ship" in str(caught.value.hint)


def test_from_a_task_that_the_plan_skips_is_refused() -> None:
    with pytest.raises(PistageError, match="skipped by the plan"):
        kept_before((ended("a", "skipped", planned=True), ended("b")), "a")


def test_whatever_the_graph_nothing_kept_rests_on_what_runs_again() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        tasks = [
            ended(
                f"t{n}",
                rng.choice(["succeeded", "succeeded", "succeeded", "failed"]),
                *rng.sample([f"t{m}" for m in range(n)], rng.randint(0, min(n, 2))),
                gang=rng.choice([None, None, "g1", "g2"]),
            )
            for n in range(rng.randint(1, 12))
        ]
        if all(task.state is State.SUCCEEDED for task in tasks):
            continue
        kept = set(kept_after_failure(tasks))
        gangs_again = {task.gang for task in tasks if task.name not in kept} - {None}
        for task in tasks:
            if task.name in kept:
                assert task.state is State.SUCCEEDED, seed
                assert set(task.needs) <= kept, seed
                assert task.gang not in gangs_again, seed
