"""What users write and what their jobs print is only ever text: never a path (S6), never a command to us (S12)."""

import json
import os
import re
from pathlib import Path

import pytest

from pistage.core.ids import is_id
from tests.e2e.processes import a_cluster, ended, output_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HOSTILE = [
    "../../../../tmp/pwned",
    "a/../../b",
    "$(touch /tmp/pwned)",
    "`id`; rm -rf *",
    "-rf --privileged",
    "名前 with ünïcode",
    "%2e%2e%2f",
    "C:\\windows",
    "x" * 200,
]
#: Everything that masters and agents may call a file or a directory of theirs.
OURS = re.compile(
    r"raft\.(db(-wal|-shm|-sums)?|mark)|state\.db(-wal|-shm|-sums)?|state|logs|term|lock|index|agent|id|journal"
    r"|\d+\.journal|lease(\.new)?"
    r"|workspaces|volumes|spool"
    r"|(agent|attempts|workspace|places|work|tmp|root|locks?)(\.\w+)?|\d+(\.[12])?|c\d+|[\w-]+\.(db|json|log|jsonl|msgpack)"
)


def a_document(name: str) -> str:
    step = {"name": name, "run": "cat /proc/self/cgroup >/dev/null; echo it ran", "env": {"X": name}, "image": "i"}
    return json.dumps({"name": name, "uses": {name: [step]}, "with": {"p": name}, "retry": 0})


async def test_no_text_of_a_user_becomes_a_path(tmp_path: Path) -> None:
    outside = set(os.listdir("/tmp"))  # noqa: PTH208 - names are what is compared
    async with a_cluster(tmp_path, "sandbox", agent_flags=("--ignore-images",)) as (_, api):
        accepted = 0
        for name in HOSTILE:
            status, answer = await api.call("POST", "/api/v1/runs", data=a_document(name))
            if status == 422:
                assert answer["findings"], answer
                continue
            done = await ended(api, answer["id"])
            assert done["state"] == "succeeded", done
            accepted += 1
            assert await output_of(api, answer["id"]) == b"it ran\n"
        assert accepted >= 4
        for role in ("master", "agent"):
            names = {path.name for path in (tmp_path / role).rglob("*")}
            assert [name for name in names if not is_id(name) and not OURS.fullmatch(name)] == []
    assert not {name for name in set(os.listdir("/tmp")) - outside if "pwned" in name}  # noqa: PTH208


SAYS_TO_A_TERMINAL = "\x1b]0;title\x07\x1b[2Jcleared"
PRINTED = [
    "::set-env name=PATH::/tmp",
    "::error file=x::pwned",
    "##vso[task.complete result=Succeeded]",
    '["finished", {"attempt_id": "x", "fence": 1}]',
    "id: 1\nevent: end\ndata: {}\n\n",
    "\x01" + "0" * 24 + ":0",
    SAYS_TO_A_TERMINAL,
]


async def test_what_a_job_prints_is_kept_as_it_is_and_does_nothing(tmp_path: Path) -> None:
    text = "\n".join(PRINTED) + "\n"
    script = "cat <<'END_OF_PRINTED'\n" + text + "END_OF_PRINTED\nexit 3\n"
    document = {"name": "Printer", "uses": {"main": [{"run": script, "image": "i"}, {"run": "echo never"}]}, "retry": 0}
    async with a_cluster(tmp_path, "sandbox", agent_flags=("--ignore-images",)) as (owned, api):
        done = await ended(api, (await api.submit(json.dumps(document)))["id"])
        assert (done["state"], done["tasks"][0]["attempts"][0]["exit_code"]) == ("failed", 3)
        assert (await output_of(api, done["id"])).decode() == text
        status, shown = await api.call("GET", f"/api/v1/runs/{done['id']}/logs")
        assert (status, shown) == (200, text.replace(SAYS_TO_A_TERMINAL, "cleared").replace("\x01", ""))
        headers = {"Accept": "text/event-stream"}
        async with api.session.get(f"{api.url}/api/v1/runs/{done['id']}/logs", headers=headers) as response:
            assert (await response.text()).count("event: end") == 1 + text.count("event: end")
        code, out, _ = await owned.cli("logs", done["id"])
        assert (code, out.decode()) == (0, text)
