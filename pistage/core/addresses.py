"""Addresses: which ones a master may send to on behalf of somebody who gave it a URL (S15)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from pistage.errors import Code, PistageError

Address = IPv4Address | IPv6Address
AddressRange = IPv4Network | IPv6Network


def _ranges(*texts: str) -> tuple[AddressRange, ...]:
    return tuple(ip_network(text) for text in texts)


# From IANA's registries of special addresses. Not `is_global`: what that means has changed between versions of Python.
#: This machine itself, its neighbours on the wire, and where clouds hand out credentials: only what the operator
#: names inside of these is let through, never a wider range such as 0.0.0.0/0.
_NAMED_ONLY: Final = (
    ("a loopback address", _ranges("127.0.0.0/8", "::1/128")),
    ("an address of no host", _ranges("0.0.0.0/8", "::/128")),
    ("a link-local address", _ranges("169.254.0.0/16", "fe80::/10")),
    ("an address where a cloud hands out credentials", _ranges("100.100.100.200/32", "192.0.0.192/32",
                                                               "fd00:ec2::254/128", "fd20:ce::254/128")),
    ("a multicast address", _ranges("224.0.0.0/4", "ff00::/8")),
    ("a broadcast address", _ranges("255.255.255.255/32")),
)  # fmt: skip
_PRIVATE: Final = (
    ("a private address", _ranges("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10")),
    ("a shared address of a provider", _ranges("100.64.0.0/10")),
    ("a reserved address", _ranges("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
                                   "203.0.113.0/24", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2002::/16",
                                   "3fff::/20")),
)  # fmt: skip
_GLOBAL_V6: Final = IPv6Network("2000::/3")
#: The IPv4 address stands in the last 32 bits: mapped (RFC 4291), translated (RFC 6052, what DNS64 answers).
_CARRIES_V4: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
_NUMBER: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AddressRules:
    """All addresses of the open internet, and those in `allowed`."""

    allowed: tuple[AddressRange, ...] = field(default=())

    @classmethod
    def of(cls, texts: Iterable[str]) -> AddressRules:
        """Rules that also allow these ranges, as 10.0.0.0/8 or fd00::/8; PistageError `usage` for anything else."""
        ranges = []
        for text in texts:
            try:
                ranges.append(ip_network(text))
            except ValueError:
                raise PistageError(
                    Code.USAGE, f"{text[:60]!r} is not a range of addresses",
                    hint="write for example 10.0.0.0/8, fd00::/8 or 192.0.2.7/32",
                ) from None  # fmt: skip
        return cls(tuple(ranges))

    def problem_of(self, address: Address) -> str | None:
        """What speaks against sending there, None if nothing does."""
        plain = _unwrapped(address)
        for what, ranges in _NAMED_ONLY:
            if (inside := _found(plain, ranges)) is not None:
                return None if self._is_allowed(plain, inside) else what
        if self._is_allowed(plain):
            return None
        for what, ranges in _PRIVATE:
            if _found(plain, ranges) is not None:
                return what
        return "a reserved address" if isinstance(plain, IPv6Address) and plain not in _GLOBAL_V6 else None

    def problem_among(self, addresses: Sequence[Address]) -> str | None:
        """What speaks against one of them: a name that stands for one of these and for others is not to be trusted."""
        return next((problem for one in addresses if (problem := self.problem_of(one)) is not None), None)

    def _is_allowed(self, address: Address, inside: AddressRange | None = None) -> bool:
        return any(
            address in allowed and (inside is None or allowed.prefixlen >= inside.prefixlen) for allowed in self.allowed
        )


def literal_in(host: str) -> Address | None:
    """The address that a host of a URL is, None if it is a name; ValueError if it is neither, as 127.1 or 0x7f.0.0.1.

    Some resolvers take such numbers for addresses, each in its own way, so nobody is to ask one.
    """
    plain = host.removeprefix("[").removesuffix("]")
    try:
        return ip_address(plain)
    except ValueError:
        last = plain.removesuffix(".").rpartition(".")[2]
        if ":" in plain or "%" in plain or _NUMBER.fullmatch(last):
            raise ValueError(f"{host[:60]!r} is neither a name nor an address") from None
        return None


def _found(address: Address, ranges: Iterable[AddressRange]) -> AddressRange | None:
    return next((one for one in ranges if address.version == one.version and address in one), None)


def _unwrapped(address: Address) -> Address:
    if isinstance(address, IPv6Address):
        if any(address in wrapper for wrapper in _CARRIES_V4):
            return IPv4Address(int(address) & 0xFFFF_FFFF)
        return IPv6Address(int(address))  # without its zone
    return address
