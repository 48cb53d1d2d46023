"""The output of a step, from the command to the master: what is too much, what is secret, what is compressed."""

import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from pistage.agent.attempt import words
from pistage.agent.attempt.output import StepOutput
from pistage.agent.masking import Masks
from pistage.agent.outbox import Outbox, OutputRefusedError
from pistage.agent.runtimes.base import STDERR, STDOUT, ExecutionError
from pistage.config import AgentConfig, load
from pistage.core import limits
from pistage.core.commands import StepFinished
from pistage.core.model import Result, State, StreamEnd
from pistage.core.plan import FailureClass
from pistage.errors import PistageError
from pistage.wire import Codec, GapReason
from tests.agent.agent_process import AgentProcess, agent_process
from tests.agent.conftest import StartAgent, nothing_left
from tests.agent.fake_master import FakeMaster, script, task
from tests.agent.fake_store import FakeStore
from tests.agent.test_outbox import kept_by

SECRET = "a-secret-of-the-cluster"
ENCODED = base64.b64encode(SECRET.encode()).decode()


# --- counted twice: as the command printed it, and as it is sent ---------------------------------------------


class Step:
    """A step's output, and the store that it comes to."""

    def __init__(self, *secrets: str, is_new: bool = True, store: FakeStore | None = None) -> None:
        self.outbox, self.store = Outbox(wait_s=5), store or FakeStore()
        self.output = StepOutput(self.outbox, "attempt", "1", is_new=is_new, masks=Masks(secrets))
        self.stdout = self.store.streams["attempt", "1", STDOUT]

    async def ends(self) -> tuple[StreamEnd, StreamEnd]:
        async with kept_by(self.outbox, self.store):
            await self.output.kept()
        return self.output.ends()


async def test_what_a_command_printed_is_counted_before_it_is_masked() -> None:
    step = Step(SECRET)
    text = f"<{SECRET}>\n".encode()
    step.output.begin_part()
    for offset, byte in enumerate(text):
        await step.output.write(STDOUT, offset, bytes([byte]))
        assert step.output.length_of(STDOUT) == offset + 1
    await step.output.write(STDOUT, 3, text[3:] + b"more")  # the engine's log, from elsewhere
    assert step.output.length_of(STDOUT) == len(text) + 4
    await step.output.end_part()
    stdout, stderr = await step.ends()
    assert step.stdout.kept == b"<***>\nmore"
    assert stdout == StreamEnd(length=10, sha256=hashlib.sha256(b"<***>\nmore").hexdigest())
    assert (stderr.length, stderr.missing) == (0, 0)


async def test_each_command_of_a_step_is_masked_by_itself() -> None:
    step = Step(SECRET)
    for part in (SECRET[:9], SECRET[9:], SECRET):
        step.output.begin_part()
        assert step.output.length_of(STDOUT) == 0
        await step.output.write(STDOUT, 0, part.encode())
        await step.output.end_part()
    await step.ends()
    assert step.stdout.kept == f"{SECRET}***".encode()


async def test_the_streams_of_a_step_are_masked_apart() -> None:
    step = Step(SECRET)
    step.output.begin_part()
    await step.output.write(STDOUT, 0, SECRET[:9].encode())
    await step.output.write(STDERR, 0, SECRET[9:].encode())
    await step.output.end_part()
    await step.ends()
    assert step.stdout.kept == SECRET[:9].encode()


async def test_a_gap_is_noted_once_and_stands_before_what_is_held_back() -> None:
    step = Step(SECRET)
    step.output.begin_part()
    await step.output.write(STDOUT, 0, b"before " + SECRET[:9].encode())
    for offset in (5, 16, 16, 40):  # one that is over, the one, a repeat, one that is not known yet
        await step.output.note_gap(STDOUT, offset)
    await step.output.write(STDOUT, 16, b" after")
    await step.output.note_gap(STDOUT, 16)
    await step.output.end_part()
    await step.ends()
    assert step.stdout.kept == b"before a-secret-o after".replace(b"a-secret-o", SECRET[:9].encode())
    assert step.stdout.gaps == [(GapReason.ENGINE, 7, 0)]


async def test_bytes_that_the_engine_skips_are_said_to_be_lost() -> None:
    step = Step()
    step.output.begin_part()
    await step.output.write(STDOUT, 0, b"0123")
    with pytest.raises(ExecutionError, match="lost 2 bytes"):
        await step.output.write(STDOUT, 6, b"6")


async def test_of_output_that_an_earlier_agent_saw_and_this_one_cannot_nobody_says_what_it_was() -> None:
    store = FakeStore()
    first = Step(store=store)
    first.output.begin_part()
    await first.output.write(STDOUT, 0, b"0123456789")
    await first.ends()
    again = Step(is_new=False, store=store)
    again.output.begin_part()
    await again.output.write(STDOUT, 0, b"0123")
    stdout, _ = await again.ends()
    assert stdout == StreamEnd(length=10, sha256="", missing=0)


async def test_what_no_master_would_keep_is_missing() -> None:
    step = Step()
    step.output.begin_part()
    await step.output.write(STDOUT, 0, b"0123456789")
    step.outbox.drop([next(iter(step.output.keys))])
    with pytest.raises(OutputRefusedError):
        await step.output.kept()
    stdout, _ = step.output.ends()
    assert (stdout.length, stdout.missing) == (10, 10)


# --- of an agent ---------------------------------------------------------------------------------------------


def only_end(master: FakeMaster, step: str = "1") -> StepFinished:
    (event,) = (event for event in master.events if isinstance(event, StepFinished) and event.step == step)
    return event


async def test_a_step_that_prints_too_much_succeeds_and_its_end_is_kept(
    master: FakeMaster, start_agent: StartAgent
) -> None:
    master.store.step_bytes_max = 1_000_000
    await start_agent()
    end = await master.run(task(script("seq 1000000; echo the end; echo quiet >&2")))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    text = b"".join(b"%d\n" % number for number in range(1, 1_000_001)) + b"the end\n"
    stdout = only_end(master).stdout
    assert stdout is not None
    assert (stdout.length, stdout.sha256) == (len(text), hashlib.sha256(text).hexdigest())
    (notice, at, none), (limit, start, missing) = master.gaps(end.attempt_id)
    assert (notice, limit, none, start, missing) == (GapReason.LIMIT, GapReason.LIMIT, 0, at, stdout.missing)
    tail = text[-limits.LOG_TAIL_BYTES_MAX :]
    assert master.store.streams[end.attempt_id, "1", 1].pieces() == [(0, text[:at]), (at + missing, tail)]
    assert master.stderr(end.attempt_id) == b"quiet\n"


async def test_secrets_are_not_seen_in_output_nor_in_reasons(master: FakeMaster, start_agent: StartAgent) -> None:
    await start_agent("host")
    steps = [
        script(f"echo {SECRET}; printf %s {ENCODED[:10]} >&2; sleep 0.1; echo {ENCODED[10:]} >&2"),
        script("", id="2"),
    ]
    no_such = replace(steps[1], script=None, entrypoint=(f"/bin/{SECRET}",))
    end = await master.run(task(steps[0], no_such), masks=(SECRET,))
    assert master.stdout(end.attempt_id) == b"***\n"
    assert master.stderr(end.attempt_id) == b"***\n"
    assert end.result.reason == "step 2: '/bin/***' could not be started: No such file or directory"
    assert SECRET not in only_end(master, "2").result.reason
    master.check_output(end.attempt_id)


async def test_a_retry_and_the_hooks_of_a_step_are_masked_too(master: FakeMaster, start_agent: StartAgent) -> None:
    await start_agent("host")
    step = script(f"echo one {SECRET}; exit 1", retries=1, failed=(f"echo two {SECRET}",))
    end = await master.run(task(step), masks=(SECRET,))
    assert master.stdout(end.attempt_id) == b"one ***\none ***\ntwo ***\n"


def test_a_reason_that_is_cut_does_not_show_half_a_secret() -> None:
    text = "x" * (limits.REASON_CHARS_MAX - 9) + SECRET
    result = words.masked(words.failed(FailureClass.FAILURE, text), Masks([SECRET]))
    assert result.reason == "x" * (limits.REASON_CHARS_MAX - 9)
    assert words.masked(Result(state=State.SUCCEEDED), Masks([SECRET])).reason == ""


@pytest.fixture
async def docker(master: FakeMaster, tmp_path: Path, engine: str) -> AsyncIterator[AgentProcess]:
    settings = {"data_dir": tmp_path, "masters": [master.url], "engine": engine, "stop_grace": 1.0}
    with agent_process(settings) as process:
        process.start()
        yield process
        await nothing_left(engine, master.hellos[-1].info.id)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("is_shared", [False, True], ids=["own process", "exec"])
async def test_what_an_agent_reads_again_is_masked_and_limited_as_before(
    master: FakeMaster, docker: AgentProcess, is_shared: bool
) -> None:
    master.store.step_bytes_max = 300_000
    lines = f"i=0; while [ $i -lt 30 ]; do i=$((i+1)); seq $((i*2000)) $((i*2000+1999)); echo {SECRET}; sleep 0.1; done"
    assign = await master.assign(task(script(lines), *([script("true", id="2")] if is_shared else [])), masks=(SECRET,))
    await master.until(lambda: bool(master.gaps(assign.attempt_id)))
    docker.kill()
    docker.start()
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED, end.result.reason
    text = b"".join(
        b"".join(b"%d\n" % number for number in range(i * 2000, i * 2000 + 2000)) + b"***\n" for i in range(1, 31)
    )
    stdout = only_end(master).stdout
    assert stdout is not None
    assert (stdout.length, stdout.sha256) == (len(text), hashlib.sha256(text).hexdigest())
    stream = master.store.streams[assign.attempt_id, "1", 1]
    assert stream.end == len(text) and 0 < stream.missing == stdout.missing
    assert all(text[offset : offset + len(data)] == data for offset, data in stream.pieces())
    assert text.endswith(stream.pieces()[-1][1])


# --- codecs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "known", "used"), [("none", (0, 1), 0), ("zlib", (0, 1), 1), ("zlib", (0,), 0)])
async def test_output_is_compressed_if_both_ends_want_it(
    master: FakeMaster, start_agent: StartAgent, wanted: str, known: tuple[int, ...], used: int
) -> None:
    master.codecs = known
    await start_agent(output_codec=wanted)
    end = await master.run(task(script("seq 100000")))
    assert master.stdout(end.attempt_id) == b"".join(b"%d\n" % number for number in range(1, 100_001))
    assert master.codecs_seen - {Codec.RAW} == {used} - {Codec.RAW}
    master.check_output(end.attempt_id)


async def test_few_bytes_are_sent_as_they_are(master: FakeMaster, start_agent: StartAgent) -> None:
    master.codecs = (0, 1)
    await start_agent(output_codec="zlib")
    end = await master.run(task(script("echo few")))
    assert master.stdout(end.attempt_id) == b"few\n"
    assert master.codecs_seen == {Codec.RAW}


def test_a_codec_that_is_none_is_refused() -> None:
    with pytest.raises(PistageError, match="output_codec"):
        load(AgentConfig, flags={"output_codec": "lzma"}, environ={})
