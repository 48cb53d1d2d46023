"""S6, S8: ten thousand documents, half broken and half invented, and none does worse than being refused."""

import random
import time
from collections.abc import Callable

import pytest

from pistage.core.definition import lint, make_plan
from pistage.errors import Code, PistageError
from pistage.predefined import example, examples, predefined_actions
from tests.core.definition.documents import library, seed_actions
from tests.core.definition.wrong import ACTIONS, WRONG

SOUND = [*(example(name) for name in examples()), *predefined_actions().values()]
BASES = [*SOUND, *SOUND, *(w.text for w in WRONG if isinstance(w.text, str) and len(w.text) < 5000)]
LIBRARY = library(predefined_actions() | seed_actions() | ACTIONS)
SECONDS_MAX = 2.0  # generous: what is looked for is a document that takes minutes

TOKENS = [
    *"{}[]:,-#&*!|>'\"%@`?\\\n\t ",
    *("{{", "}}", "{%", "%}", ": ", "- ", "\n  ", "\n    - ", "<<: ", "---\n", "...\n", "\\u0000", "\ufeff", "\u2028"),
    *("name: ", "uses: ", "run: ", "dep: ", "with: ", "on: ", "async: true", "null", "~", ".inf", "0x10", "9" * 400),
    *(
        "{{ .x }}",
        "{{ .x | q }}",
        "{% if .x %}",
        "{% endif %}",
        "{{ 'a' * 9 }}",
        "../../etc/passwd",
        "${x}",
        "é",
        "😀",
        "\x00",
    ),
    *(
        "dep: Ring A",
        "dep: Double 0",
        "dep: Level 0",
        "when: ",
        "needs: ",
        "env: {PISTAGE_X: 1}",
        "timeout: ",
        "pipelineTasks: ",
    ),
]
KEY_LIST = """
name uses run dep with image async on env workdir user timeout retry resources agent volumes networks services needs
when priority queue steps command entrypoint from pipelineTasks pipeline dependencies startNode crontab authConfig
environment environmentString alias outputs cpus memory gpus limit backoff reentry failed
inputs type options pattern default required min max min_length items max_items
concurrency group overflow on_partition onPartition queue_timeout queueTimeout factor max x
script args stdin base64 file language requirements
"""
KEYS = KEY_LIST.split()
WORDS = [
    "x",
    "alpine",
    "Sleep",
    "Ring A",
    "Double 0",
    "10m",
    "0.5",
    "2g",
    "true",
    "{{ .x }}",
    "{{ .y | default(1) }}",
    "continue",
    "cancel-old",
    "main",
    "python",
    "#!/bin/sh",
]


def bytes_flipped(rng: random.Random, text: str) -> bytes:
    raw = bytearray(text.encode())
    for _ in range(rng.randrange(1, 6)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def tokens_moved(rng: random.Random, text: str) -> str:
    for _ in range(rng.randrange(1, 5)):
        at, length = rng.randrange(len(text) + 1), rng.randrange(1, 12)
        match rng.randrange(4):
            case 0:
                text = text[:at] + text[at + length :]
            case 1:
                text = text[:at] + text[at : at + length] * rng.choice([2, 3, 50]) + text[at + length :]
            case 2:
                text = text[:at] + rng.choice(TOKENS) + text[at:]
            case _:
                other = rng.randrange(len(text) + 1)
                text = text[:at] + text[other : other + length] + text[at + length :]
        text = text or "a"
    return text


def lines_moved(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(lines))
        match rng.randrange(4):
            case 0:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 1:
                lines[at] = " " * rng.randrange(9) + lines[at].lstrip()
            case 2:
                lines[at : at + 1] = []
            case _:
                lines[at] += rng.choice(TOKENS)
        lines = lines or [""]
    return "\n".join(lines)


def scalar_swollen(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice([*TOKENS, "ab"]) * rng.choice([100, 1000, 5000]) + text[at:]


def characters_invented(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    noise = "".join(
        chr(rng.choice([rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)])) for _ in range(20)
    )
    return text[:at] + noise + text[at:]


def structure_invented(rng: random.Random, text: str) -> str:
    return _flow(rng, rng.randrange(1, 7))


def _flow(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice([*(repr(word) for word in WORDS), "5", "true", "null", "''", "[]", "{}"])
    if rng.random() < 0.35:
        return "[" + ", ".join(_flow(rng, depth - 1) for _ in range(rng.randrange(4))) + "]"
    keys = rng.sample(KEYS, rng.randrange(1, 6))
    return "{" + ", ".join(f"{key}: {_flow(rng, depth - 1)}" for key in keys) + "}"


def definition_invented(rng: random.Random, text: str) -> str:
    """Sound at the top, so that what is below is reached."""
    keys = rng.sample(KEYS, rng.randrange(5))
    extra = "".join(f"{key}: {_flow(rng, 2)}\n" for key in keys if key not in ("name", "uses", "run", "image"))
    steps = "".join(
        f"    - {{run: x, image: {rng.choice(WORDS)!r}, {rng.choice(KEYS)}: {_flow(rng, 2)}, {rng.choice(KEYS)}x: 1}}\n"
        for _ in range(rng.randrange(1, 4))
    )
    return f"name: a\n{extra}uses:\n  main:\n{steps}"


def deeply_nested(rng: random.Random, text: str) -> str:
    opening = rng.choice(["[", "{a: ", "- ", "? ", "{{", "[[{", "{? "])
    return rng.choice(["", "name: a\nrun: "]) + opening * rng.randrange(1, 3000)


MUTATIONS: list[Callable[[random.Random, str], str | bytes]] = [
    *(bytes_flipped, tokens_moved, tokens_moved, lines_moved, lines_moved, characters_invented),
    *(structure_invented, definition_invented, definition_invented),
]
RARE: list[Callable[[random.Random, str], str | bytes]] = [scalar_swollen, deeply_nested]


def survives(text: str | bytes) -> bool:
    """Whether the document made a plan; anything but a refusal fails the test, with the document in its message."""
    started = time.perf_counter()
    try:
        lint(text, actions=LIBRARY)
        make_plan(text, actions=LIBRARY, parameters={"x": "y", "n": 3})
        is_planned = True
    except PistageError as error:
        assert error.code is Code.INVALID, repr(text)
        assert error.details["findings"], repr(text)
        is_planned = False
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} from {text!r}") from error
    took = time.perf_counter() - started
    assert took < SECONDS_MAX, f"{took:.1f} s for {text!r:.2000}"
    return is_planned


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 10_000, 1000))
def test_a_thousand_documents_of_ten_do_no_worse_than_being_refused(start: int) -> None:
    planned = sum(survives(document_of(number)) for number in range(start, start + 1000))
    assert planned > 20, "the mutations break everything: nothing beyond reading is tested"


def test_two_hundred_documents_do_no_worse_than_being_refused() -> None:
    for number in range(100_000, 100_200):
        survives(document_of(number))


def document_of(number: int) -> str | bytes:
    """Document `number`, the same on every machine."""
    rng = random.Random(number)
    mutate = rng.choice(RARE) if number % 25 == 0 else rng.choice(MUTATIONS)
    text = mutate(rng, rng.choice(BASES) or "a")
    if rng.random() < 0.2 and isinstance(text, str) and text:
        text = tokens_moved(rng, text)
    return text


def test_every_truncation_of_an_example_is_planned_or_refused() -> None:
    text = example("build-and-test")
    for end in range(0, len(text), 7):
        survives(text[:end])
