"""The pure parts of notices: URLs, headers, waits, bodies and signatures."""

import hashlib
import hmac
import json
import random
from typing import Any
from urllib.parse import urlsplit

import pytest
from yarl import URL

from pistage.core import limits
from pistage.core.addresses import AddressRules, literal_in
from pistage.core.definition.messages import Told, body_of, headers_of, problem_of_body, signature
from pistage.core.notices import (
    End,
    Receiver,
    Verdict,
    problem_of_headers,
    problem_of_secret,
    problem_of_url,
    shown_url,
    verdict_on,
    wait_ms,
)
from pistage.errors import PistageError

RUN: dict[str, Any] = {"id": "r", "name": 'a "b" \\ {{ run }}', "state": "failed", "reason": "line\nbreak", "number": 7}
TOLD = Told(event="run.ended", run=RUN, tasks=[{"name": "main", "state": "failed", "reason": ""}])


@pytest.mark.parametrize(
    "url",
    ["https://example.org/", "http://example.org:8080/a/b?c=d&e=%20", "https://hooks.example.org/T/B/x-y_z~",
     "http://10.0.0.1/", "http://[2001:db8::1]:99/", "https://xn--bcher-kva.example/", "http://a_b/"],
)  # fmt: skip
def test_a_url_that_something_can_be_sent_to(url: str) -> None:
    assert problem_of_url(url) is None


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "//example.org", "ftp://example.org", "file:///etc/passwd", "https://", "https:///x",
     "https://u@example.org/", "https://u:p@example.org/", "https://example.org@169.254.169.254/", "http://a#b",
     "http://a b/", "http://a\r\nHost: b/", "http://a/\r\nX: y", "http://a\\b", "http://a/<x>", "http://bücher.example/",
     "http://１２７.0.0.1/", "http://127.0.0.1%00.example.org/", "http://%31%32%37.0.0.1/", "http://127.1/",
     "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://a:0/", "http://a:99999/", "http://a:x/",
     "http://[::1", "http://[fe80::1%25eth0]/", "http://[::ffff:127.1]/", "gopher://a/", "https://a/" + "x" * 2_000,
     "http://" + "a" * 64 + ".example/", "javascript:alert(1)", "http://a/\x00", "http://{{ x }}/"],
)  # fmt: skip
def test_a_url_that_nothing_can_be_sent_to_says_why(url: str) -> None:
    assert problem_of_url(url)


def test_no_url_that_passes_is_read_as_another_host_by_who_sends() -> None:
    rng = random.Random(3)
    pieces = ["http", "https", "://", "/", "@", ":", "?", "#", "\\", "[", "]", "%", "127.0.0.1", "::1", "a.example",
              "0x7f", "1", ".", "80", " ", "\t", "\u3002", "\uff0e", "&", ";", "\u00ad", "localhost", "%2f",
              "%40"]  # fmt: skip
    passed = 0
    for _ in range(60_000):
        url = rng.choice(["http://", "https://", ""]) + "".join(rng.choices(pieces, k=rng.randrange(1, 8)))
        if problem_of_url(url) is None:
            passed += 1
            sent = URL(url, encoded=True)
            assert sent.raw_host == urlsplit(url).hostname, url
            assert sent.user is None and sent.scheme in {"http", "https"}
            literal_in(sent.raw_host or "")  # is a name or an address
    assert passed > 1_000


def test_of_a_url_only_where_it_leads_is_shown() -> None:
    assert shown_url("https://hooks.example.org:8443/T000/secret?x=y") == "https://hooks.example.org:8443/…"
    assert shown_url("https://example.org?secret") == "https://example.org/…"
    assert shown_url("https://example.org/") == shown_url("https://example.org") == "https://example.org/"


@pytest.mark.parametrize(
    "headers",
    [{"Host": "a"}, {"content-length": "3"}, {"Transfer-Encoding": "chunked"}, {"X-Pistage-Delivery": "x"},
     {"x-pistage-anything": "x"}, {"Proxy-Authorization": "x"}, {"A": "b\r\nC: d"}, {"A\n": "b"}, {"": "b"},
     {"A B": "c"}, {"A": "ü"}, {"A": "b", "a": "c"}, {f"A{n}": "b" for n in range(21)}, {"A": "b" * 5_000}],
)  # fmt: skip
def test_a_header_that_would_make_another_request_of_it_is_refused(headers: dict[str, str]) -> None:
    assert problem_of_headers(headers)
    assert problem_of_headers({"Authorization": "Bearer x", "Content-Type": "a/b", "X-Key": ""}) is None


def test_a_secret_has_a_length_that_nobody_guesses() -> None:
    assert problem_of_secret("") is problem_of_secret("12345678") is problem_of_secret("x" * 200) is None
    assert all(map(problem_of_secret, ("1234567", "x" * 201, "12345678\n")))


def test_waits_grow_fourfold_to_ten_minutes_and_what_is_asked_for_counts_up_to_an_hour() -> None:
    assert [wait_ms(tries, 0.5) for tries in range(1, 9)] == [
        1_000, 4_000, 16_000, 64_000, 256_000, 600_000, 600_000, 600_000,
    ]  # fmt: skip
    assert (wait_ms(1, 0.0), wait_ms(1, 1.0), wait_ms(1_000_000, 1.0)) == (800, 1_200, 720_000)
    assert (wait_ms(1, 0.5, 30_000), wait_ms(6, 0.5, 1), wait_ms(1, 0.5, 10**15)) == (30_000, 600_000, 3_600_000)


def test_only_what_may_be_better_later_is_tried_again() -> None:
    again = {status for status in range(600) if verdict_on(status) is Verdict.WAITING}
    assert again == {408, 425, 429, *range(500, 600)}
    assert {status for status in range(600) if verdict_on(status) is Verdict.DELIVERED} == set(range(200, 300))


def test_a_signature_is_what_the_readme_checks() -> None:
    body, at_s, secret = b'{"a": 1}', 1_767_225_600, "a secret"
    expected = hmac.new(secret.encode(), str(at_s).encode() + b"." + body, hashlib.sha256).hexdigest()
    assert signature(secret, at_s, body) == f"sha256={expected}"
    assert signature(secret, at_s + 1, body) != signature(secret, at_s, body) != signature(secret, at_s, body + b" ")


def test_headers_of_ours_stand_and_the_content_type_follows_the_body() -> None:
    def made(receiver: Receiver, body: bytes) -> dict[str, str]:
        return headers_of(receiver, TOLD, body, delivery="r-1", at_s=5, agent="Pistage/0")

    plain = made(Receiver(url="https://a"), b"{}")
    assert (plain["Content-Type"], plain["X-Pistage-Delivery"], plain["X-Pistage-Timestamp"]) == (
        "application/json", "r-1", "5",
    )  # fmt: skip
    assert "X-Pistage-Signature-256" not in plain
    assert made(Receiver(url="https://a", body="x"), b"no json")["Content-Type"].startswith("text/plain")
    assert made(Receiver(url="https://a", body="x"), b"[1]")["Content-Type"] == "application/json"
    own = made(Receiver(url="https://a", headers={"content-type": "a/b", "User-Agent": "me"}), b"{}")
    assert (own["content-type"], own["User-Agent"], "Content-Type" in own) == ("a/b", "me", False)


def test_without_a_template_all_is_told_in_json() -> None:
    assert json.loads(body_of(TOLD, "")) == TOLD.to_plain()


def test_values_are_data_in_a_template_and_never_templates_themselves() -> None:
    assert json.loads(body_of(TOLD, '{"t": {{ run.name | tojson }}, "r": {{ run.reason | tojson }}}')) == {
        "t": RUN["name"], "r": RUN["reason"],
    }  # fmt: skip
    assert json.loads(body_of(TOLD, "{{ run | tojson }}")) == RUN
    assert body_of(TOLD, "{{ run.name }}").decode() == RUN["name"]
    assert body_of(TOLD, "{% if tasks[0].state == 'failed' %}{{ tasks[0].name }}{% endif %}") == b"main"


@pytest.mark.parametrize(
    "template",
    ["{{ ", "{% for x in tasks %}{% endfor %}", "{{ run.__class__() }}", "{{ nope }}", "{{ 'a' * 10 }}", "{% if %}",
     "x" * 16_385, "{{ run.name | nope }}"],
)  # fmt: skip
def test_a_template_that_never_makes_a_body_is_refused_where_it_is_written(template: str) -> None:
    assert problem_of_body(template)
    assert problem_of_body("{{ run.name }} {{ tasks }} {{ event }} {{ tasks_left_out }}") is None


@pytest.mark.parametrize(
    "template", ["{{ run.nope }}", "{{ tasks[5].name }}", "{{ run.reason }}" * 40, "{{ run.reason }}" * 1_000]
)
def test_a_body_that_cannot_be_made_or_is_too_large_says_so(template: str) -> None:
    assert problem_of_body(template) is None
    told = Told(event="run.ended", run=RUN | {"reason": "x" * 2_000}, tasks=TOLD.tasks)
    with pytest.raises(PistageError, match="its body"):
        body_of(told, template)


def test_no_template_makes_more_than_is_allowed_whatever_it_is_made_of() -> None:
    rng = random.Random(11)
    pieces = ["{{", "}}", "{%", "%}", "if", "endif", "else", " run", ".name", ".reason", " tasks", "[0]", "|", "tojson",
              "replace('a', run)", "~", "+", "(", ")", "'x'", " or ", "{% raw %}", "upper", "join(run.name)",
              "-"]  # fmt: skip
    made = 0
    for _ in range(20_000):
        template = "".join(rng.choices(pieces, k=rng.randrange(1, 14)))
        if problem_of_body(template) is not None:
            continue
        try:
            assert len(body_of(TOLD, template)) <= limits.NOTICE_BODY_BYTES_MAX
            made += 1
        except PistageError as refusal:
            assert refusal.message.startswith("its body")
    assert made > 500


def test_receivers_ask_for_ends_and_pipelines() -> None:
    every, some, none = (Receiver(url="https://a", pipelines=names) for names in (None, ("a",), ()))
    assert every.is_told_of("b", End.LOST) and some.is_told_of("a", End.FAILED)
    assert not every.is_told_of("b", End.SUCCEEDED) and not some.is_told_of("b", End.FAILED)
    assert not none.is_told_of("a", End.FAILED)
    assert "https" not in repr(Receiver(url="https://a", secret="12345678", headers={"A": "b"}))
    assert AddressRules() == AddressRules.of([])
