"""One suite for every runtime: what a task may expect wherever it runs."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import pytest

from pistage.agent.service import Agent
from pistage.core.commands import Accepted, StepStarted
from pistage.core.model import State
from pistage.core.plan import Block, FailureClass, Parameter, Step, When
from pistage.wire import Cancel, LogRefused
from tests.agent.conftest import StartAgent, nothing_left
from tests.agent.fake_master import FakeMaster, script, task

pytestmark = pytest.mark.timeout(120)
Start = Callable[[], Awaitable[Agent]]


@pytest.fixture(params=["sandbox", "host", pytest.param("docker", marks=pytest.mark.engine)])
async def agent(request: pytest.FixtureRequest, start_agent: StartAgent):
    if request.param != "docker":
        yield await start_agent(request.param)
        return
    engine = request.getfixturevalue("engine")
    agent = await start_agent("docker", engine=engine)
    yield agent
    await nothing_left(engine, agent.agent_id)


pytestmark = [pytest.mark.usefixtures("agent"), pytest.mark.timeout(120)]


async def test_a_step_that_succeeds(master: FakeMaster) -> None:
    end = await master.run(task(script("echo out; echo err >&2")))
    assert end.result.state is State.SUCCEEDED
    assert (master.stdout(end.attempt_id), master.stderr(end.attempt_id)) == (b"out\n", b"err\n")
    kinds = [event.kind for event in master.events]
    assert kinds == ["accepted", "step_started", "step_finished", "finished"]
    master.check_output(end.attempt_id)


async def test_a_step_that_fails_says_how(master: FakeMaster) -> None:
    end = await master.run(task(script("exit 7")))
    assert (end.result.state, end.result.failure, end.result.exit_code) == (State.FAILED, FailureClass.FAILURE, 7)
    assert end.result.reason == "step 1: the command ended with exit code 7"


async def test_a_script_ends_at_its_first_failure(master: FakeMaster) -> None:
    end = await master.run(task(script("echo one\nfalse\necho two")))
    assert end.result.exit_code == 1
    assert master.stdout(end.attempt_id) == b"one\n"


async def test_a_command_killed_by_a_signal_names_it(master: FakeMaster) -> None:
    end = await master.run(task(script("kill -SEGV $$", context="c1"), script("true", id="2")))
    assert end.result.exit_code == 139
    assert "signal 11 (SIGSEGV)" in end.result.reason


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(
    "text",
    [
        "head -c 5000000 /dev/urandom | tee copy; sha256sum < copy >&2",
        "printf 'no newline'; printf 'here neither' >&2",
        "true",
        "yes '' | head -n 100000",
        r"printf '\0\0a\n\0'; printf '\377\376\n\200' >&2",
        "head -c 200000 /dev/zero | tr '\\0' x; echo; head -c 16384 /dev/zero | tr '\\0' y; echo; echo z",
    ],
    ids=["random", "unended", "nothing", "empty lines", "not text", "long lines"],
)
async def test_output_is_exact_on_both_streams(master: FakeMaster, text: str, is_shared: bool) -> None:
    steps = [script(text), *([script("true", id="2")] if is_shared else [])]
    end = await master.run(task(*steps))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    master.check_output(end.attempt_id)
    stdout, stderr = master.stdout(end.attempt_id), master.stderr(end.attempt_id)
    if "urandom" in text:
        assert stderr.split()[0].decode() == hashlib.sha256(stdout).hexdigest()
    elif "no newline" in text:
        assert (stdout, stderr) == (b"no newline", b"here neither")
    elif "yes" in text:
        assert stdout == b"\n" * 100_000
    elif "377" in text:
        assert (stdout, stderr) == (b"\0\0a\n\0", b"\xff\xfe\n\x80")
    elif "200000" in text:
        assert stdout == b"x" * 200_000 + b"\n" + b"y" * 16_384 + b"\nz\n"
    else:
        assert stdout == b""


async def test_steps_of_a_context_share_its_files(master: FakeMaster) -> None:
    end = await master.run(task(script("echo kept > file"), script("cat file", id="2")))
    assert master.stdout(end.attempt_id, "2") == b"kept\n"


async def test_contexts_do_not_share_files(master: FakeMaster) -> None:
    end = await master.run(task(script("echo mine > file"), script("ls", id="2", context="c2")))
    assert master.stdout(end.attempt_id, "2") == b""


async def test_the_environment_of_a_step(master: FakeMaster) -> None:
    step = script(
        'echo "$A|$PISTAGE_PARAM_B_C|$PISTAGE_RUN_NUMBER|$PISTAGE_TASK|$PISTAGE_ATTEMPT|$PISTAGE_FENCE|$PISTAGE_STEP"',
        env={"A": "a b", "PISTAGE_FENCE": "999", "PISTAGE_EVIL": "x"},
        parameters=(Parameter(name="b.c", value="$(touch /tmp/x)", origin="given to the run"),),
    )
    other = script('echo "[$PISTAGE_EVIL$PISTAGE_SCHEDULED_AT]"', id="2")
    end = await master.run(task(step, other), number=3)
    assert master.stdout(end.attempt_id) == f"a b|$(touch /tmp/x)|7|a task|3|{end.fence}|1\n".encode()
    assert master.stdout(end.attempt_id, "2") == b"[]\n"
    end = await master.run(task(script("echo $PISTAGE_SCHEDULED_AT")), scheduled_at=1_795_400_100_000)
    assert master.stdout(end.attempt_id) == b"2026-11-23T02:15:00Z\n"


async def test_nothing_is_to_be_read_from_stdin(master: FakeMaster) -> None:
    end = await master.run(task(script("cat; echo ended")))
    assert master.stdout(end.attempt_id) == b"ended\n"


async def test_a_working_directory_is_made(master: FakeMaster) -> None:
    steps = [script("pwd > where; cat where", workdir="/workspace/a/b"), script("cat a/b/where", id="2")]
    end = await master.run(task(*steps))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(end.attempt_id, "2").endswith(b"/workspace/a/b\n")


async def test_a_command_runs_as_its_words_say(master: FakeMaster) -> None:
    step = Step(id="1", name="1", context="c1", entrypoint=("/bin/echo",), command=("a  b", "$HOME", "'"))
    end = await master.run(task(step))
    assert master.stdout(end.attempt_id) == b"a  b $HOME '\n"


async def test_a_command_that_does_not_exist(master: FakeMaster) -> None:
    step = Step(id="1", name="1", context="c1", entrypoint=("/no/such/command",))
    end = await master.run(task(step))
    assert (end.result.failure, end.result.exit_code) == (FailureClass.FAILURE, 127)
    assert "/no/such/command" in end.result.reason or "exit code 127" in end.result.reason


async def test_a_script_longer_than_the_kernel_takes_in_a_word(master: FakeMaster) -> None:
    text = "\n".join(f"test é = 'x{number}' || echo {number}" for number in range(12_000)) + '\necho "$#"'
    assert len(text.encode()) > 300_000
    end = await master.run(task(script(text)))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(end.attempt_id).endswith(b"\n11999\n0\n")


async def test_a_failed_step_ends_its_sequence_and_says_so_of_the_rest(master: FakeMaster) -> None:
    steps = [
        script("false"),
        script("echo no", id="2"),
        script("echo on failure", id="3", when=When.FAILURE),
        script("echo always", id="4", when=When.ALWAYS),
    ]
    end = await master.run(task(*steps))
    states = {step: event.result.state for step, event in master.steps_of(end.attempt_id).items()}
    assert states == {"1": State.FAILED, "2": State.SKIPPED, "3": State.SUCCEEDED, "4": State.SUCCEEDED}
    assert master.steps_of(end.attempt_id)["2"].result.reason == "an earlier step failed"
    assert end.result.state is State.FAILED


async def test_a_step_for_failures_is_skipped_when_there_is_none(master: FakeMaster) -> None:
    end = await master.run(task(script("true"), script("true", id="2", when=When.FAILURE)))
    assert master.steps_of(end.attempt_id)["2"].result.reason == "no earlier step failed"
    assert end.result.state is State.SUCCEEDED


async def test_a_condition_that_was_false_is_the_reason(master: FakeMaster) -> None:
    end = await master.run(task(script("false", skip_reason="not on this branch"), script("true", id="2")))
    assert master.steps_of(end.attempt_id)["1"].result.reason == "not on this branch"
    assert end.result.state is State.SUCCEEDED


async def test_branches_run_at_once_and_a_failure_leaves_the_others_alone(master: FakeMaster) -> None:
    # Each branch waits for the other: they end only if they run at the same time.
    left = "touch left; while [ ! -e right ]; do sleep 0.05; done; exit 3"
    right = "touch right; while [ ! -e left ]; do sleep 0.05; done; sleep 0.2; echo right"
    branches = Block(kind="parallel", children=(script(left), script(right, id="2")))
    end = await master.run(task(branches, script("echo never", id="3")))
    assert master.stdout(end.attempt_id, "2") == b"right\n"
    assert master.steps_of(end.attempt_id)["3"].result.state is State.SKIPPED
    assert end.result.exit_code == 3


async def test_an_async_step_lets_the_next_start_and_is_waited_for(master: FakeMaster) -> None:
    steps = [
        script("while [ ! -e go ]; do sleep 0.05; done; echo last; exit 4", is_async=True),
        script("touch go; echo first", id="2"),
    ]
    end = await master.run(task(*steps))
    assert (master.stdout(end.attempt_id), master.stdout(end.attempt_id, "2")) == (b"last\n", b"first\n")
    assert end.result.exit_code == 4


async def test_concurrent_steps_of_one_context_do_not_mix_their_output(master: FakeMaster) -> None:
    text = "i=0; while [ $i -lt 300 ]; do echo {0}; echo {0} >&2; i=$((i+1)); done"
    branches = tuple(script(text.format(number), id=str(number)) for number in range(1, 7))
    end = await master.run(task(Block(kind="parallel", children=branches)))
    for number in range(1, 7):
        expected = b"%d\n" % number * 300
        assert master.stdout(end.attempt_id, str(number)) == expected
        assert master.stderr(end.attempt_id, str(number)) == expected
    master.check_output(end.attempt_id)


async def test_tries_in_place_with_their_hooks(master: FakeMaster) -> None:
    step = script(
        "echo try; n=$(cat n 2>/dev/null || echo 0); echo $((n+1)) > n; [ $n = 2 ]",
        retries=3, reentry=("echo again",), failed=("echo never",),
    )  # fmt: skip
    end = await master.run(task(step))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(end.attempt_id) == b"try\nagain\ntry\nagain\ntry\n"
    master.check_output(end.attempt_id)


async def test_a_step_whose_tries_all_fail_runs_its_last_hook_and_stays_failed(master: FakeMaster) -> None:
    end = await master.run(task(script("echo try; exit 5", retries=1, failed=("echo sorry", "echo again"))))
    assert master.stdout(end.attempt_id) == b"try\ntry\nsorry\nagain\n"
    assert end.result.exit_code == 5


@pytest.mark.slow
async def test_a_step_that_runs_too_long_is_stopped_and_what_follows_it_knows(master: FakeMaster) -> None:
    text = "trap 'echo stopped; exit 9' TERM; echo started; while :; do sleep 0.1; done"
    steps = [script(text, timeout_s=1.0), script("echo after", id="2", when=When.FAILURE)]
    end = await master.run(task(*steps))
    assert end.result.failure is FailureClass.TIMEOUT
    assert end.result.reason == "step 1: ran longer than its 1 s"
    assert master.stdout(end.attempt_id) == b"started\nstopped\n"
    assert master.stdout(end.attempt_id, "2") == b"after\n"
    master.check_output(end.attempt_id)


@pytest.mark.slow
async def test_a_step_that_ignores_the_stop_signal_is_killed(master: FakeMaster) -> None:
    end = await master.run(task(script("trap '' TERM; echo deaf; while :; do sleep 0.1; done", timeout_s=1.0)))
    assert end.result.failure is FailureClass.TIMEOUT
    assert master.stdout(end.attempt_id) == b"deaf\n"


@pytest.mark.slow
async def test_a_task_that_runs_too_long(master: FakeMaster) -> None:
    end = await master.run(task(script("sleep 100"), script("echo never", id="2", when=When.ALWAYS), timeout_s=1.0))
    assert (end.result.state, end.result.failure) == (State.FAILED, FailureClass.TIMEOUT)
    assert end.result.reason == "the task ran longer than its 1 s"
    assert master.steps_of(end.attempt_id)["2"].result.state is State.SKIPPED


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
async def test_cancelling_stops_kills_and_only_then_says_so(master: FakeMaster, is_shared: bool) -> None:
    text = "trap 'echo cleaning up; exit 0' TERM; echo started; while :; do sleep 0.1; done"
    steps = [script(text), *([script("true", id="2")] if is_shared else [])]
    assign = await master.assign(task(*steps))
    await master.until(lambda: b"started" in master.stdout(assign.attempt_id))
    await master.send(Cancel(attempt_id=assign.attempt_id, reason="somebody changed their mind"))
    end = await master.finished(assign)
    assert (end.result.state, end.result.failure) == (State.CANCELLED, None)
    assert end.result.reason == "somebody changed their mind"
    assert master.stdout(assign.attempt_id) == b"started\ncleaning up\n"
    assert master.steps_of(assign.attempt_id)["1"].result.state is State.CANCELLED
    master.check_output(assign.attempt_id)


async def test_a_process_left_behind_does_not_hold_its_step(master: FakeMaster) -> None:
    end = await master.run(task(script("sleep 60 & echo started"), script("echo next", id="2")))
    assert (master.stdout(end.attempt_id), master.stdout(end.attempt_id, "2")) == (b"started\n", b"next\n")


@pytest.mark.slow
async def test_a_repeated_assignment_is_not_a_second_execution(master: FakeMaster) -> None:
    assign = await master.assign(task(script("echo once; sleep 0.5")))
    await master.send(assign)
    await master.until(lambda: master.heard(StepStarted))
    await master.send(assign)
    end = await master.finished(assign)
    assert master.stdout(end.attempt_id) == b"once\n"
    assert sum(isinstance(event, Accepted) for event in master.events) == 1


@pytest.mark.slow
async def test_output_reaches_a_master_that_was_away(master: FakeMaster) -> None:
    text = "i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); sleep 0.05; done"
    assign = await master.assign(task(script(text)))
    await master.until(lambda: b"line 2" in master.stdout(assign.attempt_id))
    await master.hang_up()
    end = await master.finished(assign)
    assert master.stdout(assign.attempt_id) == b"".join(b"line %d\n" % number for number in range(20))
    assert end.result.state is State.SUCCEEDED
    master.check_output(assign.attempt_id)


async def test_many_attempts_at_once_keep_their_output_apart(master: FakeMaster) -> None:
    assigns = [await master.assign(task(script('echo "$PISTAGE_RUN_ID"'))) for _ in range(12)]
    ends = await asyncio.gather(*(master.finished(assign) for assign in assigns))
    for assign, end in zip(assigns, ends, strict=True):
        assert master.stdout(end.attempt_id) == f"{assign.run_id}\n".encode()


async def test_output_that_no_master_may_keep_fails_the_step_with_the_reason(master: FakeMaster) -> None:
    refusal = LogRefused(attempt_id="", step="", stream=1, reason="the run printed more than 1 GiB", is_final=True)
    assign = await master.assign(task(script("echo start; while :; do echo more; sleep 0.1; done")))
    await master.until(lambda: b"start" in master.stdout(assign.attempt_id))
    master.log_refusal = refusal
    end = await master.finished(assign)
    assert end.result.failure is FailureClass.FAILURE
    assert end.result.reason == "step 1: its output could not be kept: the run printed more than 1 GiB"
