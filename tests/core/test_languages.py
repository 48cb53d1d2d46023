"""Languages: how a script is told to be in one, and what configuration changes about them."""

import pytest

from pistage.core.languages import DEFAULTS, Installer, Language, detected, ending_of, is_name, merged


@pytest.mark.parametrize(
    ("file", "text", "language"),
    [
        ("a.py", "#!/bin/sh", "python"),
        ("a.PY", "", "python"),
        ("a.mjs", "", "node"),
        ("dir/a.sh", "", "sh"),
        ("a.txt", "#!/usr/bin/env python3\n", "python"),
        (None, "#!/usr/bin/python3.12 -u\n", "python"),
        (None, "#!/usr/bin/env -S node --flag\n", "node"),
        (None, "#!/usr/bin/env A=1 nodejs\n", "node"),
        (None, "#!/bin/bash\n", "bash"),
        (None, "#! /bin/dash\r\n", "sh"),
        ("a.rb", "#!/usr/bin/ruby", None),
        (None, "#!/usr/bin/env\n", None),
        (None, "#!", None),
        (None, "print(1) #!/bin/sh", None),
        (None, "", None),
        ("py", "", None),
        (".py", "", None),
    ],
)
def test_a_script_is_in_the_language_of_its_ending_else_of_its_first_line(
    file: str | None, text: str, language: str | None
) -> None:
    assert detected(text, file, DEFAULTS) == language


def test_a_language_of_the_configuration_is_told_by_its_ending_and_its_interpreter() -> None:
    known = {**DEFAULTS, "ruby": Language(command=("/opt/ruby/bin/ruby3.3",), endings=(".rb",))}
    assert detected("", "a.rb", known) == "ruby"
    assert detected("#!/usr/bin/env ruby\n", None, known) == "ruby"


@pytest.mark.parametrize(
    ("file", "ending"),
    [("a.py", ".py"), ("a.b.mjs", ".mjs"), ("a. /x", ""), ("a.\n", ""), ("a.", ""), ("..", ""), ("a.é", "")],
)
def test_an_ending_is_nothing_but_letters_and_digits(file: str, ending: str) -> None:
    assert ending_of(file) == ending


@pytest.mark.parametrize(
    ("text", "is_one"), [("c++", True), ("python3.12", True), ("", False), ("A", False), ("a/b", False)]
)
def test_what_a_language_can_be_called(text: str, is_one: bool) -> None:
    assert is_name(text) is is_one


def test_what_configuration_leaves_out_is_as_it_is_without_it() -> None:
    python = merged("python", image="mine:1", command=None, endings=None, installer=None)
    assert (python.image, python.command, python.installer) == ("mine:1", ("python3", "-u"), Installer.PIP)
    assert merged("python", image=None, command=None, endings=None, installer="none").installer is None
    ruby = merged("ruby", image=None, command=None, endings=(".RB",), installer=None)
    assert ruby == Language(command=("ruby",), endings=(".rb",))
