"""The links between masters: whoever cannot be reached, and whatever stands in a URL, stops nobody who tries."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from pistage import wire
from pistage.errors import PistageError
from pistage.master import founding
from pistage.master.peers import SNAPSHOT_PATH, STREAM_PATH, Peers
from pistage.owning import running
from pistage.raft.messages import Vote
from tests.master.fakes import a_master
from tests.master.test_group import eventually

NO_HOSTS = ["http://host..lan:8470", f"http://{'a' * 64}.lan:8470", "http://[::", "http://h:99999", "nothing", ""]


def a_hello(node_id: str = "m1", url: str = "http://127.0.0.1:1") -> wire.PeerHello:
    return wire.PeerHello(node_id=node_id, group_id="g", url=url, version="1", command_version=1, founders={})


@pytest.mark.parametrize("url", NO_HOSTS)
async def test_a_master_whose_url_is_none_stops_none_of_the_others(url: str, caplog: pytest.LogCaptureFixture) -> None:
    peers = Peers(a_hello, None)
    async with running(peers.serve()):
        await asyncio.sleep(0)
        peers.learn({"m2": url or "http://"})
        peers.connect(["m2"])
        await eventually(lambda: "no link to master=m2" in caplog.text)
        assert isinstance(await founding.fetch_hello(peers.http, url), PistageError)
        with pytest.raises(PistageError):
            await peers.fetch_snapshot("m2", 1, Path("nowhere"))


async def test_a_manifest_that_is_no_text_is_a_failed_fetch(tmp_path: Path) -> None:
    async def garbage(request: web.Request) -> web.Response:
        return web.Response(body=b"\xff\xfe{")

    app = web.Application()
    app.router.add_get(SNAPSHOT_PATH, garbage)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        peers = Peers(a_hello, None)
        async with running(peers.serve()):
            await asyncio.sleep(0)
            peers.learn({"m2": f"http://127.0.0.1:{runner.addresses[0][1]}"})
            with pytest.raises(PistageError):
                await peers.fetch_snapshot("m2", 1, tmp_path / "state.db")
    finally:
        await runner.cleanup()


async def test_garbage_on_a_link_ends_the_link_and_nothing_else(tmp_path: Path) -> None:
    async with a_master(tmp_path, token=None) as api:
        replica = api.master.context.replica  # type: ignore[attr-defined]
        vote = Vote(src="m2", dst=replica.node_id, term=99, last_index=1, last_term=1)
        code, src, dst, _, *rest = wire.unpack_value(wire.pack_peer_message(vote))
        for message in (b"\xc1", wire.pack_value([code, src, dst, "99", *rest]), wire.pack_peer_message(vote)[:-1]):
            async with aiohttp.ClientSession() as session, session.ws_connect(api.url + STREAM_PATH) as stream:
                hello = wire.PeerHello(
                    node_id="m2", group_id=replica.identity.group_id, url="http://127.0.0.1:1", version="1",
                    command_version=1, founders={},
                )  # fmt: skip
                await stream.send_bytes(wire.pack_hello(hello))
                await stream.receive_bytes()
                await stream.send_bytes(message)
                assert (await stream.receive()).type is not aiohttp.WSMsgType.BINARY
        run = await api.submit()
        assert run["state"] == "queued"
        assert replica.term < 99


async def test_a_link_to_one_that_is_no_member_ends_once_nobody_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = Peers(a_hello, None)
    async with running(peers.serve()):
        await asyncio.sleep(0)
        peers.learn({"m2": "http://127.0.0.1:1", "m3": "http://127.0.0.1:1"})
        peers.connect(["m2", "m3"])
        peers.connect(["m3"])  # m2 was taken out, but may have something to be told yet
        assert peers._links.keys() == {"m2", "m3"}
        monkeypatch.setattr("pistage.master.peers._IDLE_S", 0.0)
        await asyncio.sleep(0.01)
        peers.connect(["m3"])
        assert peers._links.keys() == {"m3"}
