"""Which addresses a URL of a stranger may lead to (S15)."""

import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from pistage.core.addresses import AddressRules, literal_in
from pistage.errors import PistageError

NONE = AddressRules()
REFUSED = [
    # of this machine
    "127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "0.1.2.3", "::",
    # on its wires, and where clouds hand out credentials
    "169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "febf::1", "fd00:ec2::254", "100.100.100.200",
    # of its network
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fdff::1", "fec0::1",
    "100.64.0.1", "100.127.255.255",
    # of nobody, or of many
    "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
    "255.255.255.255", "ff02::1", "2001:db8::1", "100::1", "4000::1", "5f00::1", "3fff::1",
    # with another one inside
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:1", "::127.0.0.1", "::10.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8", "2002:7f00:1::1",
    "2002:808:808::1", "2001:0:7f00:1::1", "2001::1",
]  # fmt: skip
LET_THROUGH = [
    "8.8.8.8", "1.1.1.1", "93.184.216.34", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1",
    "11.0.0.1", "9.255.255.255", "223.255.255.255", "2606:4700::1111", "2a00:1450:4001:80b::200e",
    "::ffff:8.8.8.8", "64:ff9b::808:808",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_only_the_open_internet_is_let_through(text: str) -> None:
    assert NONE.problem_of(ip_address(text)) is not None


@pytest.mark.parametrize("text", LET_THROUGH)
def test_the_open_internet_is_let_through(text: str) -> None:
    assert NONE.problem_of(ip_address(text)) is None


@pytest.mark.parametrize(
    ("allowed", "lets", "refuses"),
    [
        ("10.0.0.0/8", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203"], ["192.168.0.1", "127.0.0.1"]),
        ("fd00::/8", ["fd12::1"], ["fc00::1", "fd00:ec2::254", "::1"]),
        ("0.0.0.0/0", ["10.0.0.1", "192.168.0.1", "240.0.0.1", "100.64.0.1"],
         ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "100.100.100.200", "fd12::1"]),
        ("::/0", ["fd12::1", "2002:808:808::1"], ["::1", "fe80::1", "::ffff:10.0.0.1", "fd00:ec2::254", "::"]),
        ("127.0.0.0/8", ["127.0.0.1", "::ffff:127.0.0.1"], ["::1", "10.0.0.1", "169.254.169.254"]),
        ("127.0.0.7/32", ["127.0.0.7"], ["127.0.0.1"]),
        ("126.0.0.0/7", ["126.0.0.1"], ["127.0.0.1"]),
        ("::1/128", ["::1"], ["127.0.0.1"]),
        ("169.254.1.0/24", ["169.254.1.9"], ["169.254.169.254"]),
    ],
)  # fmt: skip
def test_what_is_this_machine_or_its_cloud_must_be_listed_itself(
    allowed: str, lets: list[str], refuses: list[str]
) -> None:
    rules = AddressRules.of([allowed])
    assert [text for text in lets if rules.problem_of(ip_address(text)) is not None] == []
    assert [text for text in refuses if rules.problem_of(ip_address(text)) is None] == []


def test_a_name_is_refused_if_one_of_its_addresses_is() -> None:
    fine, bad = ip_address("8.8.8.8"), ip_address("169.254.169.254")
    assert NONE.problem_among([fine, fine]) is None
    assert NONE.problem_among([fine, bad]) == NONE.problem_among([bad, fine]) == "a link-local address"


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "everything", "", "10.*", "fd00::/129"])
def test_what_is_no_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(PistageError, match=r"10\.0\.0\.0/8"):
        AddressRules.of([text])


@pytest.mark.parametrize(
    "host", ["127.1", "127.0.1", "2130706433", "0x7f.0.0.1", "0x7f000001", "0177.0.0.1", "017700000001", "1.2.3.4.5",
             "256.1.1.1", "127.0.0.1.", "a.0x7f", "a.b.1", "1::2::3", "12345::"],
)  # fmt: skip
def test_a_number_that_some_resolver_takes_for_an_address_is_neither_a_name_nor_an_address(host: str) -> None:
    with pytest.raises(ValueError, match="neither a name nor an address"):
        literal_in(host)


def test_names_and_addresses_are_told_apart() -> None:
    assert [literal_in(host) for host in ("example.org", "localhost", "a1", "1a.example", "x.1a")] == [None] * 5
    assert literal_in("127.0.0.1") == IPv4Address("127.0.0.1")
    assert literal_in("[::1]") == literal_in("::1") == IPv6Address("::1")


def test_whatever_python_calls_private_is_refused_too() -> None:
    rng = random.Random(7)
    inside = [ip_network(text) for text in ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "fe80::/10", "fc00::/7")]
    for _ in range(20_000):
        network = rng.choice(inside)
        address = network[rng.randrange(network.num_addresses)]
        assert NONE.problem_of(address) is not None
        other = IPv4Address(rng.getrandbits(32))
        if other.is_private or other.is_loopback or other.is_link_local or other.is_multicast or other.is_unspecified:
            assert NONE.problem_of(other) is not None, other
        elif NONE.problem_of(other) is not None:
            assert not other.is_global or other in ip_network("192.88.99.0/24") or str(other) == "192.0.0.192", other
