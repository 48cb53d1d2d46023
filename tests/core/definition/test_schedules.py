"""`schedule` of a definition: what it may say, and what of it is wrong."""

import pytest

from pistage.core.cron import CatchUp, Overlap, Schedule
from pistage.core.definition import lint, parse_schedule
from pistage.errors import PistageError
from tests.core.definition.documents import plan_of

HEAD = "name: night\nimage: busybox\nrun: echo\n"


def schedules_of(schedule: str, head: str = HEAD) -> dict[str, Schedule]:
    found = lint(f"{head}schedule: {schedule}\n", actions=None)
    assert not found.findings
    return dict(found.schedules)


def faults_of(schedule: str, head: str = HEAD) -> list[tuple[str, str, str]]:
    found = lint(f"{head}schedule: {schedule}\n", actions=None)
    return [(one.code, one.path, one.message) for one in found.errors]


def test_a_crontab_is_enough() -> None:
    assert schedules_of("'0 2 * * *'") == {"night": Schedule(cron="0 2 * * *")}


def test_everything_can_be_said() -> None:
    said = (
        "{cron: '@daily', timezone: Asia/Shanghai, overlap: cancel-old, jitter: 90s, enabled: false, once: true,"
        " catch_up: {mode: all, limit: 5, window: 2h}, with: {n: 3, list: [a, true, null], text: '1.50'}}"
    )
    assert schedules_of(said) == {
        "night": Schedule(
            cron="@daily", timezone="Asia/Shanghai", overlap=Overlap.CANCEL_OLD, catch_up=CatchUp.ALL, limit=5,
            window_ms=7_200_000, jitter_ms=90_000, is_once=True, is_enabled=False,
            parameters={"n": 3, "list": ["a", True, None], "text": "1.50"},
        )
    }  # fmt: skip


def test_several_have_names_of_their_own() -> None:
    said = "['0 2 * * *', {cron: '0 3 * * *'}, {name: late, cron: '0 4 * * *'}]"
    assert {name: one.cron for name, one in schedules_of(said).items()} == {
        "night": "0 2 * * *", "night-2": "0 3 * * *", "late": "0 4 * * *",
    }  # fmt: skip


def test_a_catch_up_that_says_no_mode_catches_up_the_last() -> None:
    (one,) = schedules_of("{cron: '@daily', catch_up: {window: 1d}}").values()
    assert (one.catch_up, one.window_ms) == (CatchUp.LAST, 86_400_000)


def test_the_plan_of_a_run_knows_nothing_of_it() -> None:
    assert plan_of(HEAD) == plan_of(f"{HEAD}schedule: '@daily'\n")


@pytest.mark.parametrize(
    ("schedule", "code", "path", "message"),
    [
        ("5", "wrong-kind", "schedule", "schedule must be a crontab, a mapping with 'cron', or a list of them"),
        ("{timezone: UTC}", "no-cron", "schedule", "the schedule has no 'cron'"),
        ("'61 * * * *'", "bad-cron", "schedule", "61"),
        ("'0 0 31 2 *'", "bad-cron", "schedule", ""),
        ("{cron: '@daily', timezone: Mars/Olympus}", "bad-timezone", "schedule.timezone", "Mars/Olympus"),
        ("{cron: '@daily', overlap: maybe}", "wrong-kind", "schedule.overlap", "schedule.overlap"),
        ("{cron: '@daily', catch_up: some}", "wrong-kind", "schedule.catch_up", "schedule.catch_up"),
        ("{cron: '@daily', catch_up: {limit: 0}}", "", "schedule.catch_up.limit", "catch_up.limit"),
        ("{cron: '@daily', catch_up: {window: 8d}}", "", "schedule.catch_up.window", "at most 168 h"),
        ("{cron: '@daily', jitter: soon}", "", "schedule.jitter", "schedule.jitter"),
        ("{cron: '@daily', with: {n: [.nan]}}", "bad-number", "schedule.with", "nan cannot be kept"),
        ("{cron: '@daily', with: {n: 1e999}}", "bad-number", "schedule.with", "inf cannot be kept"),
        ("{cron: '@daily', with: {n: {m: 99999999999999999999}}}", "bad-number", "schedule.with", "more than 64 bits"),
        ("{cron: '@daily', with: 5}", "wrong-kind", "schedule.with", "schedule.with"),
        ("{cron: '@daily', enabled: 'yes'}", "wrong-kind", "schedule.enabled", "true or false"),
        ("[{cron: '@daily'}, {name: night, cron: '@hourly'}]", "same-name", "schedule[1]", "two schedules called"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(schedule: str, code: str, path: str, message: str) -> None:
    ((found_code, found_path, found_message),) = faults_of(schedule)
    assert found_path == path and message in found_message
    assert found_code == code or not code


def test_every_fault_is_told_at_once() -> None:
    assert len(faults_of("[{cron: 'x', timezone: y}, {overlap: z}, 7]")) == 5


def test_there_are_not_too_many() -> None:
    crons = ", ".join(f"{{name: s{n}, cron: '@daily'}}" for n in range(21))
    assert [code for code, *_ in faults_of(f"[{crons}]")] == ["too-many-schedules"]


def test_a_concurrency_group_and_an_overlap_contradict_each_other() -> None:
    head = f"{HEAD}concurrency: deploy\n"
    assert [code for code, *_ in faults_of("{cron: '@daily', overlap: queue}", head)] == ["overlap-and-concurrency"]
    assert schedules_of("{cron: '@daily'}", head)


def test_it_belongs_to_the_whole_definition() -> None:
    found = lint("name: a\nuses:\n  g:\n    steps: [{image: i, run: x}]\n    schedule: '@daily'\n", actions=None)
    assert [(one.code, one.path) for one in found.errors] == [("misplaced-key", "uses.g.schedule")]


def test_a_program_says_it_in_the_same_words() -> None:
    assert parse_schedule({"cron": "@daily", "with": {"n": 1}}) == Schedule(cron="@daily", parameters={"n": 1})
    with pytest.raises(PistageError) as refused:
        parse_schedule({"cron": "x", "overlap": "y"})
    assert len(refused.value.details["findings"]) == 2
