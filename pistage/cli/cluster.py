"""The verbs `cluster status|transfer|remove|snapshot`, which ask the masters, and `join|restore|recover`, which do not.

The last three work on the directory of a master that does not run, on its own machine, with its own configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pistage.cli import groups, masters, options, output
from pistage.cli.connect import connect
from pistage.config import ClientConfig, Config, MasterConfig, load, read_token
from pistage.errors import Code, PistageError

if TYPE_CHECKING:
    from pistage.master.repair import Holding


@click.group("cluster", short_help="Show, grow, mend, back up and restore the masters.")
def cluster_verb() -> None:
    """Show, grow, mend, back up and restore the masters. A master is named by its id, a prefix of it, or its URL."""


@cluster_verb.command("status")
@output.format_option("table", "json", "yaml")
@options.client_options
def cluster_status(*, fmt: str, config: Config[ClientConfig]) -> None:
    """Show the masters: who leads, who votes, how far each has come, and how many may fail."""

    async def fetch() -> dict[str, Any]:
        async with connect(config) as connection:
            return await masters.fetch_picture(connection.client)

    picture = groups.run(fetch())
    if fmt != "table":
        output.print_value(picture, fmt=fmt)
        return
    output.print_items(picture["masters"], masters.columns(picture["masters"]), fmt=fmt)
    output.say(masters.outlook(picture))


@cluster_verb.command("transfer")
@click.argument("master", default="")
@options.client_options
def transfer(*, master: str, config: Config[ClientConfig]) -> None:
    """Let another master lead: MASTER, or the one whose log is furthest."""

    async def ask() -> dict[str, Any]:
        async with connect(config) as connection:
            return await connection.client.transfer_leadership(master)

    leads = groups.run(ask())
    output.say(f"master {leads['leader']} at {leads['leader_url']} leads")


@cluster_verb.command("remove")
@click.argument("master")
@options.client_options
def remove(*, master: str, config: Config[ClientConfig]) -> None:
    """Take MASTER out of the group for good; one that leads hands over first.

    Refused where too few of the others would be left to decide anything.
    """

    async def ask() -> dict[str, Any]:
        async with connect(config) as connection:
            return await connection.client.remove_master(master)

    answer = groups.run(ask())
    gone, left = answer["removed"], sum(one["is_voter"] for one in answer["masters"])
    output.say(f"master {gone['id']} at {gone['url'] or 'an unknown address'} is out; voters left: {left}")
    output.say("stop it if it runs; `pistage cluster join` there would bring it back as a new member")


@cluster_verb.command("snapshot")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--stale", is_flag=True, help="As far as the master that answers is; works without a leader.")
@options.client_options
def snapshot(*, file: Path, stale: bool, config: Config[ClientConfig]) -> None:
    """Save the state of the cluster to FILE: whole and checked, or not at all. Work goes on meanwhile.

    FILE holds runs, actions and agents, and can be used by `pistage cluster restore`. It holds no output of steps.
    """

    async def save() -> int:
        async with connect(config) as connection:
            return await connection.client.save_snapshot(file, is_stale=stale)

    if not file.absolute().parent.is_dir():
        raise PistageError(Code.USAGE, f"there is no directory {file.absolute().parent}")
    size = groups.run(save())
    output.say(f"{file}: {output.size(size)}")


# --- on the machine of a master that does not run ----------------------------------------------------------------


def master_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `serve --role master`; they arrive resolved, as `settings`."""

    @functools.wraps(function)
    def resolved(*args: Any, config_file: Path | None, flags: Mapping[str, object], **kwargs: Any) -> Any:
        return function(*args, settings=load(MasterConfig, flags=flags, file=config_file).settings, **kwargs)

    return options.config_file_option(options.keys_as_options("master")(resolved))


@cluster_verb.command("join")
@click.option("--replace", is_flag=True, help="Also where the directory holds a master that is whole.")
@master_options
def join(*, replace: bool, settings: MasterConfig) -> None:
    """Make this machine's master one that joins the group of its `peers`: a new one, or one whose data is damaged.

    Takes the configuration of `pistage serve --role master` and needs that master stopped. What its directory held is
    moved aside; the output of steps stays. Started again, it is let in by itself, in place of the one before it.
    """
    from pistage.master import repair
    from pistage.master.founding import advertised

    own = advertised(settings)
    others = sorted({peer.rstrip("/") for peer in settings.peers} - {own})
    if not others:
        raise PistageError(
            Code.USAGE, "peers names no other master to join", hint="set peers to the URLs of masters of the group"
        )
    with repair.held(settings.data_dir):
        group_id, members = groups.run(masters.fetch_group(others, read_token(settings)))
        made = repair.join(settings.data_dir, repair.Group(group_id=group_id, members=members), is_replaced=replace)
    _say_aside(made.aside)
    output.say(f"{settings.data_dir} is ready: master {made.identity.node_id} joins the group when it starts")
    output.say("now start it: `pistage serve --role master` with this configuration")


@cluster_verb.command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@master_options
def restore(*, file: Path, settings: MasterConfig) -> None:
    """Begin a group of one master with the state in FILE, in an empty directory.

    Takes the configuration of `pistage serve --role master`. The cluster keeps its id, so its agents come back to it;
    masters of the group before do not. Others join by `pistage cluster join`.
    """
    from pistage.master import repair
    from pistage.master.founding import advertised

    own = advertised(settings)
    if not repair.is_sealed(file):
        output.say(f"warning: {file} has no check sum, so not all damage can be found", fg="yellow")
    with repair.held(settings.data_dir):
        made = repair.restore(settings.data_dir, file, own)
    output.say(f"{settings.data_dir} holds the state of {file}, as master {made.identity.node_id}, a group of its own")
    _say_next()


@cluster_verb.command("recover")
@click.option("--force-new", is_flag=True, help="Do it: what this master never heard of is lost.")
@master_options
def recover(*, force_new: bool, settings: MasterConfig) -> None:
    """Make a surviving master a group of its own, when the majority of the masters is lost for good.

    Takes the configuration of that master and needs it stopped. If several survive, recover the one that is furthest,
    on no account more than one.
    """
    from pistage.master import repair
    from pistage.master.founding import advertised

    own = advertised(settings)
    if not settings.data_dir.is_dir():
        raise repair.nothing_in(settings.data_dir)
    with repair.held(settings.data_dir):
        holding = _recoverable(settings.data_dir)
        others = {url for url in (*holding.masters.values(), *settings.peers) if url.rstrip("/") != own}
        end = (holding.last_term, holding.last_index)
        groups.run(masters.refuse_if_alive(sorted(others), holding.identity.group_id, end, read_token(settings)))
        _explain_recovery(settings.data_dir, holding)
        if not force_new:
            raise PistageError(
                Code.USAGE,
                "nothing was done",
                hint="if the other masters are lost for good, say so with --force-new; if they can be brought back,"
                " start them instead",
            )
        made = repair.recover(settings.data_dir, own)
    _say_aside(made.aside)
    output.say(f"{settings.data_dir} is master {made.identity.node_id} now, a group of its own")
    _say_next()


def _recoverable(data_dir: Path) -> Holding:
    from pistage.master import repair

    try:
        holding = repair.examine(data_dir)
    except PistageError as error:
        raise PistageError(
            error.code,
            error.message,
            hint="recover another master that survived, or use a snapshot: `pistage cluster restore`",
        ) from None
    if holding is None or not holding.membership.members:
        raise repair.nothing_in(data_dir)
    return holding


def _explain_recovery(data_dir: Path, holding: Holding) -> None:
    output.say(
        f"{data_dir} holds master {holding.identity.node_id}, of {len(holding.membership.voters)} that vote;"
        f" its log ends at {holding.last_index}, its state is at {holding.applied_index}"
    )
    output.say(
        "warning: with --force-new it decides alone. Changes that the others had made without it are lost, though they"
        " were acknowledged; changes that it had heard of and that were never acknowledged take effect. Masters of the"
        " old group must never run again except through `pistage cluster join`",
        fg="yellow",
        bold=True,
    )


def _say_aside(aside: Path | None) -> None:
    if aside is not None:
        output.say(f"what was there is in {aside} now; delete it when nobody needs it")


def _say_next() -> None:
    output.say("now start it: `pistage serve --role master` with this configuration")
    output.say("then each other master: `pistage cluster join --replace` with its configuration, and start it")
