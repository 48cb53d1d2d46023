"""A network of its own for every master: a namespace each, on one bridge, whose packets can be dropped one way or both.

Agents can have one too; those that have none are on the machine's own side of the bridge, and cannot be cut off.

Needs root, `ip` and `iptables`. The bridge stands in a namespace as well, so that no rule of this machine's firewall
takes part, and nothing but one end of one link is seen on the machine itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

_PORT: Final = 8470


def is_possible() -> bool:
    """Whether this process may make namespaces."""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "iptables")):
        return False
    name = f"pc{os.getpid()}try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    return subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False).returncode == 0


class Namespaces:
    """A `Network`; made and taken down by `namespaces`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._id = f"pc{os.getpid()}"
        self._subnet = f"10.{77 + os.getpid() // 250 % 100}.{os.getpid() % 250}"
        self._hosts = {name: f"{self._subnet}.{n}" for n, name in enumerate(self._names, start=2)}

    def address(self, name: str) -> str:
        return f"{self._hosts[name]}:{_PORT}"

    def prefix(self, name: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._space(name)) if name in self._hosts else ()

    def cut(self, source: str, target: str) -> None:
        """Nothing that `source` sends arrives at `target` any more; the other way stays open."""
        self._iptables(target, "-A", "INPUT", "-s", self._hosts[source], "-j", "DROP")

    def isolate(self, name: str) -> None:
        """Nothing from anywhere arrives at `name`, nor from it anywhere: clients and agents included."""
        self._iptables(name, "-A", "INPUT", "-j", "DROP")
        self._iptables(name, "-A", "OUTPUT", "-j", "DROP")

    def heal(self) -> None:
        """Every packet goes through again."""
        for name in self._names:
            self._iptables(name, "-F")

    def _iptables(self, name: str, *arguments: str) -> None:
        _run("ip", "netns", "exec", self._space(name), "iptables", "-w", "5", *arguments)

    def _space(self, name: str) -> str:
        return f"{self._id}{name}"

    def make(self) -> None:
        hub = self._space("hub")
        _run("ip", "netns", "add", hub)
        _run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "bridge", "up")
        outside = f"{self._id}x"  # at most 15 characters
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "outside", "netns", hub)
        _run("ip", "-n", hub, "link", "set", "outside", "master", "bridge", "up")
        _run("ip", "addr", "add", f"{self._subnet}.1/24", "dev", outside)
        _run("ip", "link", "set", outside, "up")
        for name, host in self._hosts.items():
            space = self._space(name)
            _run("ip", "netns", "add", space)
            _run("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", hub)
            _run("ip", "-n", hub, "link", "set", name, "master", "bridge", "up")
            _run("ip", "-n", space, "addr", "add", f"{host}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", space, "link", "set", device, "up")

    def remove(self) -> None:
        """Whatever of it is there; links go with their namespaces."""
        subprocess.run(["ip", "link", "del", f"{self._id}x"], capture_output=True, check=False)
        for name in [*self._names, "hub"]:
            subprocess.run(["ip", "netns", "del", self._space(name)], capture_output=True, check=False)


@contextmanager
def namespaces(names: Iterable[str]) -> Iterator[Namespaces]:
    """The network, until the block is left."""
    network = Namespaces(names)
    try:
        network.make()
        yield network
    finally:
        network.remove()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
