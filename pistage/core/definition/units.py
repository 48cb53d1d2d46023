"""Units: how durations, memory, CPU and labels are written, and what they are worth."""

from __future__ import annotations

import re
import shlex

from pistage.core import limits
from pistage.core.plan import Constraint

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,9})?")
_MEMORY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(i?b?)", re.IGNORECASE)
_MEMORY_UNITS = {"": 1, "k": limits.KIB, "m": limits.MIB, "g": limits.GIB, "t": 1024 * limits.GIB}
_MEMORY_BYTES_MIN = 6 * limits.MIB  # what Docker takes at least
_CPUS_MAX = 1024
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_./-]{0,98}[A-Za-z0-9])?"
_LABEL_VALUE = r"[A-Za-z0-9_.:/+-]{1,100}"
_SET = re.compile(rf"({_LABEL})\s+(not\s+)?in\s*[\[(]([^\[\]()]*)[\])]")
_EQUAL = re.compile(rf"({_LABEL})\s*(==?|!=)\s*({_LABEL_VALUE})")
_ABSENT = re.compile(rf"!\s*({_LABEL})")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,199}")


def seconds_of(text: str) -> float | None:
    """`90s`, `10m`, `1h30m`, `500ms`, `1d` or a number of seconds; None if it is none of these."""
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return round(sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts), 6)


def bytes_of(text: str) -> int | None:
    """`512Mi`, `2g`, `1.5GB` or a number of bytes; every unit is a power of 1024, as Docker has it."""
    found = _MEMORY.fullmatch(text)
    if found is None or (not found[2] and found[3].lower() not in ("", "b")):
        return None
    amount = round(float(found[1]) * _MEMORY_UNITS[found[2].lower()])
    return amount if _MEMORY_BYTES_MIN <= amount < 2**53 else None


def milli_of(text: str) -> int | None:
    """`0.5`, `2` or `500m`, in thousandths of a core."""
    if re.fullmatch(r"\d{1,7}m", text):
        milli = int(text[:-1])
    elif _NUMBER.fullmatch(text):
        milli = round(float(text) * 1000)
    else:
        return None
    return milli if 1 <= milli <= _CPUS_MAX * 1000 else None


def words_of(text: str) -> tuple[str, ...] | None:
    """The words of a command line, split as a shell would; None if its quotes do not end."""
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return None


def constraint_of(text: str) -> Constraint | None:
    """`gpu=true`, `zone in [a, b]`, `zone not in [a]`, `disk!=hdd`, `!spot` or `ssd`; None if it is none of these."""
    text = text.strip()
    if found := _SET.fullmatch(text):
        values = tuple(part.strip() for part in found[3].split(","))
        if not all(re.fullmatch(_LABEL_VALUE, value) for value in values):
            return None
        return Constraint(key=found[1], operator="not_in" if found[2] else "in", values=values)
    if found := _EQUAL.fullmatch(text):
        return Constraint(key=found[1], operator="not_in" if found[2] == "!=" else "in", values=(found[3],))
    if found := _ABSENT.fullmatch(text):
        return Constraint(key=found[1], operator="absent")
    return Constraint(key=text, operator="present") if re.fullmatch(_LABEL, text) else None


def is_label(text: str) -> bool:
    """Whether `text` can be the key of a label."""
    return re.fullmatch(_LABEL, text) is not None


def is_label_value(text: str) -> bool:
    """Whether `text` can be the value of a label."""
    return re.fullmatch(_LABEL_VALUE, text) is not None


def constraints_in(text: str) -> list[str]:
    """`gpu=true, zone in [a, b]` taken apart at the commas that are not inside brackets."""
    return [part for part in re.split(r",(?![^\[(]*[\])])", text) if part.strip()]


def is_environment_name(text: str) -> bool:
    """Whether `text` can be the name of an environment variable."""
    return _ENVIRONMENT_NAME.fullmatch(text) is not None
