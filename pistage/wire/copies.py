"""What masters say to each other about output, which is outside the replicated log: questions and their answers.

Each travels as one msgpack list, `[kind, group id, ...its fields in order]`, an answer as `[...its fields]`. Records
of the index go as they stand on disk. `term` is that of the leader who asks: who answers takes nothing from a lower
one from then on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

from pistage.errors import Code, PistageError
from pistage.wire.packing import pack_value, unpack_value


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a run somebody has: records of its index, and the term of the last."""

    run_id: str
    count: int
    term: int

    @property
    def rank(self) -> tuple[int, int]:
        """The higher one has everything that was ever acknowledged of what either has (§5.4.1)."""
        return (self.term, self.count)


@dataclass(frozen=True, slots=True)
class Piece:
    """Records of a run from number `start` on, and their bytes; `before` is record `start - 1`, b"" for none.

    Of attempts that are in the archive alone the stubs take the place of the bytes: pairs of attempt and stub.
    """

    run_id: str
    start: int
    before: bytes
    records: bytes
    data: bytes
    stubs: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a piece fits, and then up to which record the copy is the leader's now; if not, where to try next."""

    is_taken: bool
    count: int


@dataclass(frozen=True, slots=True)
class Extents:
    """The answer to Survey and Inventory."""

    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """The answer to Copy, one for each piece."""

    fits: tuple[Fit, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """The answer to Fetch: the next records and their bytes, or, where the records before differ, where to try next."""

    fit: Fit
    records: bytes
    data: bytes
    stubs: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """How much is there of these runs?"""

    term: int
    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is there at all, the newest first: at most `limit` runs before this one ("" for no bound)."""

    term: int
    before: str
    limit: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Keep these."""

    term: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Give what comes after record `start - 1`, which is `before` here."""

    term: int
    run_id: str
    start: int
    before: bytes


CopyQuestion = Survey | Inventory | Copy | Fetch
CopyAnswer = Extents | Copied | Fetched

_QUESTIONS: Final[tuple[type[Any], ...]] = (Survey, Inventory, Copy, Fetch)
_VALUES: Final = {
    kind: attrgetter(*(field.name for field in fields(kind))) for kind in (*_QUESTIONS, Fetched, Extent, Piece, Fit)
}


def pack_copy_question(group_id: str, question: CopyQuestion) -> bytes:
    """The body of a request."""
    values = list(_VALUES[type(question)](question))
    if isinstance(question, Copy):
        values[1] = [_VALUES[Piece](piece) for piece in question.pieces]
    return pack_value([_QUESTIONS.index(type(question)), group_id, *values])


def unpack_copy_question(raw: bytes) -> tuple[str, CopyQuestion]:
    """Group and question; PistageError `invalid` for anything else."""
    match unpack_value(raw):
        case [0, str(group_id), int(term), [*run_ids]] if all(isinstance(run_id, str) for run_id in run_ids):
            return group_id, Survey(term, tuple(run_ids))
        case [1, str(group_id), int(term), str(before), int(limit)]:
            return group_id, Inventory(term, before, limit)
        case [2, str(group_id), int(term), [*pieces]]:
            return group_id, Copy(term, tuple(_piece(piece) for piece in pieces))
        case [3, str(group_id), int(term), str(run_id), int(start), bytes(before)]:
            return group_id, Fetch(term, run_id, start, before)
    raise _no_message()


def pack_copy_answer(answer: CopyAnswer) -> bytes:
    """The body of an answer."""
    match answer:
        case Extents(extents=extents):
            return pack_value([_VALUES[Extent](extent) for extent in extents])
        case Copied(fits=fits):
            return pack_value([_VALUES[Fit](fit) for fit in fits])
        case Fetched(fit=fit, records=records, data=data, stubs=stubs):
            return pack_value([_VALUES[Fit](fit), records, data, stubs])


def unpack_copy_answer(question: CopyQuestion, raw: bytes) -> CopyAnswer:
    """The answer to that question; PistageError `invalid` for anything else."""
    match question, unpack_value(raw):
        case Survey() | Inventory(), [*extents]:
            return Extents(tuple(_extent(extent) for extent in extents))
        case Copy(), [*fits]:
            return Copied(tuple(_fit(fit) for fit in fits))
        case Fetch(), [fit, bytes(records), bytes(data), [*stubs]]:
            return Fetched(_fit(fit), records, data, _stubs(stubs))
    raise _no_message()


def _piece(plain: Any) -> Piece:
    match plain:
        case [str(run_id), int(start), bytes(before), bytes(records), bytes(data), [*stubs]] if start >= 0:
            return Piece(run_id, start, before, records, data, _stubs(stubs))
    raise _no_message()


def _stubs(plain: list[Any]) -> tuple[tuple[str, bytes], ...]:
    if not all(isinstance(one, list) and list(map(type, one)) == [str, bytes] for one in plain):
        raise _no_message()
    return tuple((attempt_id, stub) for attempt_id, stub in plain)


def _extent(plain: Any) -> Extent:
    match plain:
        case [str(run_id), int(count), int(term)]:
            return Extent(run_id, count, term)
    raise _no_message()


def _fit(plain: Any) -> Fit:
    match plain:
        case [bool(is_taken), int(count)]:
            return Fit(is_taken, count)
    raise _no_message()


def _no_message() -> PistageError:
    return PistageError(Code.INVALID, "not a message of the masters about output")
