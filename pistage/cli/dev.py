"""The verb `dev`: a master and an agent in one process, on a directory that every other verb finds by itself."""

from __future__ import annotations

from contextlib import AsyncExitStack

import click

from pistage.cli import embedded, follow, groups, options, output
from pistage.cli.connect import Connection
from pistage.cli.home import Home
from pistage.client import Client
from pistage.config import DEFAULT_PORT, ClientConfig, Config, read_token
from pistage.errors import Code, PistageError


@click.command("dev", short_help="Start a master and an agent in one process.")
@click.option("--listen", default=f"127.0.0.1:{DEFAULT_PORT}", show_default=True, help="Address and port; port 0: any.")
@click.option("--demo", is_flag=True, help="Run the demo, show it, and stay.")
@click.option("--exit", "is_left", is_flag=True, help="With --demo: leave when the demo is over, with its code.")
@click.option("--plain", is_flag=True, help="Plain lines, also on a terminal.")
@click.option(
    "--runtime",
    type=click.Choice(["docker", "sandbox", "host"]),
    help="How steps run. Docker where an engine answers, else sandbox, unless set.",
)
@click.option("-v", "--verbose", count=True, help="Say more on stderr.")
@options.client_options
def dev_verb(
    *,
    listen: str,
    demo: bool,
    is_left: bool,
    plain: bool,
    runtime: str | None,
    verbose: int,
    config: Config[ClientConfig],
) -> int:
    """Start a master and an agent in one process, for one person on one machine.

    Data, the token (made at the first start) and the address live in --data-dir, where the other verbs find them.
    Ctrl-C stops it; what was run is kept, and what was running is taken up again at the next start.
    """
    from pistage.cli.serve import start_logging

    start_logging(verbose, quiet=True)
    home = Home(config.settings.data_dir)
    return groups.run(
        _dev(home, config, listen=listen, runtime=runtime, has_demo=demo, is_left=is_left, is_plain=plain)
    )


async def _dev(
    home: Home,
    config: Config[ClientConfig],
    *,
    listen: str,
    runtime: str | None,
    has_demo: bool,
    is_left: bool,
    is_plain: bool,
) -> int:
    from pistage.cli.serve import stop_event

    given = read_token(config.settings)
    async with AsyncExitStack() as stack:
        await _own(stack, home)
        choice = await embedded.choose_runtime(runtime, may_wait=True)
        cluster = await stack.enter_async_context(
            embedded.cluster(home, choice=choice, listen=listen, token=given, is_lasting=True)
        )
        _greet(home, cluster, choice, is_demo=has_demo)
        client = await stack.enter_async_context(Client((cluster.url,), cluster.token))
        if has_demo:
            code = await _demo(client, is_plain=is_plain)
            if is_left:
                return code
            output.say(f"pistage dev goes on at {cluster.url} (Ctrl-C stops it)")
        await stop_event().wait()
        output.say("stopping")
    return 0


async def _own(stack: AsyncExitStack, home: Home) -> None:
    """Become the owner of `home`; an owner that only looks is waited for."""
    while not stack.enter_context(home.lock()):
        if endpoint := await home.endpoint(needs_agent=True):
            raise PistageError(
                Code.CONFLICT,
                f"a cluster of process {endpoint.pid} runs on {home.path} already, at {endpoint.url}",
                hint="the other verbs find it by themselves; for a second one use another --data-dir",
            )


def _greet(home: Home, cluster: embedded.Cluster, choice: embedded.Choice, *, is_demo: bool) -> None:
    output.say(f"pistage dev: {cluster.url}, runtime {choice.runtime}, data in {home.path}", bold=True)
    if choice.note:
        output.say(f"note: {choice.note}", fg="yellow", bold=True)
    output.say(f"the token is in {home.token_file}")
    if not is_demo:
        output.say(NEXT_COMMANDS)


NEXT_COMMANDS = """in another terminal:
  pistage run FILE        run a definition
  pistage ps              list runs
  pistage action ls       actions to build on
  pistage --help          everything else"""


async def _demo(client: Client, *, is_plain: bool) -> int:
    from pistage.cli.run import Manner, followed
    from pistage.predefined import example

    run = await client.submit_run({"definition": example("demo")})
    ended = await followed(Connection(client=client, is_embedded=True), run, Manner(is_plain=is_plain))
    return follow.say_result(ended)
