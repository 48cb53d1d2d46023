"""What the masters say, put together: the group as its leader sees it, and each master as it says itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pistage.cli import output
from pistage.client import Client
from pistage.errors import Code, PistageError

_PATIENCE_S: Final = 3.0  # for one master of several: one that does not answer is part of the picture
_ID_CHARS: Final = 8
Cluster = dict[str, Any]


# --- the picture -----------------------------------------------------------------------------------------------------


async def fetch_picture(client: Client) -> Cluster:
    """The group as its leader sees it, or whoever answers where there is none; with each master's own words."""
    first = await client.fetch_cluster()
    urls = {master["id"]: master["url"] for master in first["masters"] if master.get("url")}
    said = await asyncio.gather(*(_asked(client.at(url)) for url in urls.values()))
    answers = dict(zip(urls, said, strict=True))
    leader = answers.get(first["leader"] or "")
    view = leader if isinstance(leader, dict) and leader["node"] == leader["leader"] else first
    furthest = max([_applied(view), *map(_applied, answers.values())])
    masters = [_master(one, answers.get(one["id"]), furthest) for one in view["masters"]]
    voters = [master for master in masters if master["is_voter"]]
    alive = sum(master["error"] is None for master in voters)
    picture = {key: view.get(key) for key in ("cluster_id", "leader", "leader_url", "term", "version")}
    # Of those alive all but a majority may fail; below zero so many have to come back.
    return picture | {"voters": len(voters), "may_fail": alive - len(voters) // 2 - 1, "masters": masters}


def _master(seen: Mapping[str, Any], said: Cluster | PistageError | None, furthest: int) -> dict[str, Any]:
    """One master: what others see of it, and what it says if it answers."""
    known: Mapping[str, Any] = said if isinstance(said, dict) and said["node"] == seen["id"] else {}
    applied = known.get("applied_index", seen.get("match_index"))
    return {
        "id": seen["id"],
        "url": seen.get("url"),
        "role": seen["role"],
        "is_voter": seen.get("is_voter", True),
        "version": known.get("version", seen.get("version")),
        "applied_index": applied,
        "lag": None if applied is None else max(0, furthest - applied),
        "digest": known.get("digest"),
        "last_heard_ms": seen.get("last_heard_ms"),
        "is_disk_full": known.get("is_disk_full"),
        "disk_free_bytes": known.get("disk_free_bytes"),
        "error": None if known else _why_silent(said),
    }


def _why_silent(said: Cluster | PistageError | None) -> str:
    match said:
        case PistageError():
            return said.message
        case None:
            return "where it is reached is not known"
        case _:
            return f"master {said['node']} answers there"


def columns(masters: Sequence[Mapping[str, Any]]) -> dict[str, output.Cell]:
    """The table of `masters`."""
    shown = _distinct([master["id"] for master in masters])
    return {
        "MASTER": lambda master: str(master["id"][:shown]),
        "URL": lambda master: master["url"] or "-",
        "ROLE": lambda master: str(master["role"]),
        "VOTES": lambda master: "yes" if master["is_voter"] else "no",
        "VERSION": lambda master: master["version"] or "-",
        "APPLIED": lambda master: _number(master["applied_index"]),
        "LAG": lambda master: _number(master["lag"]),
        "HEARD": lambda master: _ago(master["last_heard_ms"]),
        "DISK": _disk,
        "ANSWERS": lambda master: "yes" if master["error"] is None else f"no: {master['error']}",
    }


def outlook(picture: Mapping[str, Any]) -> str:
    """How many masters may fail, or have to come back."""
    voters, may_fail = picture["voters"], picture["may_fail"]
    silent = [master["url"] or master["id"] for master in picture["masters"] if master["error"] is not None]
    away = f"; no answer from {', '.join(silent)}" if silent else ""
    led = "" if picture["leader"] else "there is no leader; "
    if may_fail >= 0:
        return f"{led}of {voters} masters that vote {may_fail or 'none'} may fail{away}"
    return f"{led}of {voters} masters that vote {-may_fail} must come back before anything can be decided{away}"


def _distinct(ids: Sequence[str]) -> int:
    """How much of an id is enough to tell these apart."""
    longest = max(map(len, ids), default=0)
    return next((n for n in range(_ID_CHARS, longest) if len({one[:n] for one in ids}) == len(ids)), longest)


def _applied(said: Cluster | PistageError) -> int:
    return said.get("applied_index") or 0 if isinstance(said, dict) else 0


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _ago(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else f"{output.duration(milliseconds / 1000)} ago"


def _disk(master: Mapping[str, Any]) -> str:
    if master["is_disk_full"]:
        return "full"
    free = master["disk_free_bytes"]
    return "-" if free is None else f"{output.size(free)} free"


# --- asked for one purpose -------------------------------------------------------------------------------------------


async def _asked(client: Client) -> Cluster | PistageError:
    """What the only master of this client says of the cluster, or why it does not."""
    try:
        async with asyncio.timeout(_PATIENCE_S), client:
            return await client.fetch_cluster()
    except PistageError as error:
        return error
    except TimeoutError:
        return PistageError(Code.UNAVAILABLE, "no answer in time")


async def _asked_at(urls: Sequence[str], token: str | None) -> dict[str, Cluster | PistageError]:
    clients = [Client((url,), token, first_patience_s=0.0, patience_s=0.0) for url in urls]
    return dict(zip(urls, await asyncio.gather(*map(_asked, clients)), strict=True))


async def fetch_group(urls: Sequence[str], token: str | None) -> tuple[str, dict[str, str]]:
    """The group of the masters at `urls`: its id, and its members' ids and URLs.

    PistageError: why none of them said, or `conflict` where they are of different groups.
    """
    answers = await _asked_at(urls, token)
    said = {url: answer for url, answer in answers.items() if isinstance(answer, dict)}
    if not said:
        errors = [answer for answer in answers.values() if isinstance(answer, PistageError)]
        first = next((error for error in errors if error.code is not Code.UNAVAILABLE), None)
        raise first or PistageError(
            Code.UNAVAILABLE,
            f"none of the peers answers: {'; '.join(error.message for error in errors)}",
            hint="a group can be joined only while it runs; check peers",
        )
    if len({answer["group_id"] for answer in said.values()}) > 1:
        raise PistageError(
            Code.CONFLICT,
            f"the peers are of different groups: {', '.join(sorted(said))}",
            hint="name the masters of one group in peers, and bring the others into it one by one",
        )
    # The one that is furthest knows best who is a member.
    newest = max(said.values(), key=lambda answer: (answer["leader"] == answer["node"], answer["last_index"]))
    return newest["group_id"], {master["id"]: master["url"] or "" for master in newest["masters"]}


async def refuse_if_alive(urls: Sequence[str], group_id: str, end: tuple[int, int], token: str | None) -> None:
    """PistageError `conflict` if the group has a leader, or a master whose log goes beyond `end` (term and index)."""
    answers = await _asked_at(urls, token)
    for url, answer in answers.items():
        if not isinstance(answer, dict) or answer["group_id"] != group_id:
            continue
        if answer["leader"]:
            raise PistageError(
                Code.CONFLICT,
                f"the group is alive: {url} has a leader",
                hint="start this master, or bring it back with `pistage cluster join`",
            )
        if (answer["last_term"], answer["last_index"]) > end:
            raise PistageError(
                Code.CONFLICT,
                f"the master at {url} is further: its log ends at {answer['last_index']}, this one's at {end[1]}",
                hint="recover that one, and let this one join it",
            )
