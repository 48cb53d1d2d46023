"""The house keeps its rooms: who may import whom, what is pure, how long a function and a file may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pistage"
FILES = sorted(PACKAGE.rglob("*.py"))

#: The table of the README. `predefined` holds files that are shipped; `__main__` is the door to the command line.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "raft": {"errors"},
    "predefined": {"errors"},
    "wire": {"core", "raft", "errors"},
    "config": {"errors"},
    "owning": set(),
    "client": {"wire", "core", "errors"},
    "agent": {"client", "config", "wire", "core", "errors", "owning"},
    "master": {"client", "config", "wire", "core", "errors", "owning", "raft", "predefined"},
    "cli": {"master", "agent", "client", "config", "wire", "core", "errors", "owning", "predefined"},
    "__main__": {"cli"},
    "__init__": set(),
}
#: In a pure room nothing brings in time, chance, the machine or another thread of control.
IMPURE = {
    "asyncio", "concurrent", "ctypes", "multiprocessing", "os", "queue", "random", "secrets", "select", "selectors",
    "signal", "socket", "subprocess", "sys", "threading", "time", "uuid",
    "aiohttp", "aiodocker", "aiosqlite", "msgpack",
}  # fmt: skip
IMPURE_CALLS = {"now", "utcnow", "today", "open", "urandom", "read_text", "write_text", "read_bytes", "write_bytes"}
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 450


def room_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def ids(file: Path) -> str:
    return str(file.relative_to(ROOT))


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that the file names in an import, at the top or inside a function, as `a.b.c`."""
    package = ["pistage", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree_of(file)):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield alias.name, node.lineno
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                for alias in names:
                    yield ".".join([*base, *([module] if module else []), alias.name]), node.lineno


def rooms_imported(file: Path) -> Iterator[tuple[str, int]]:
    for name, line in imported(file):
        root, _, rest = name.partition(".")
        if root == "pistage" and rest and not rest.startswith("__version__"):
            yield rest.partition(".")[0], line


def test_every_room_is_in_the_table() -> None:
    assert {room_of(file) for file in FILES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_room_imports_only_what_the_table_allows(file: Path) -> None:
    room = room_of(file)
    allowed = MAY_IMPORT[room] | {room}
    stray = [f"{ids(file)}:{line} imports {other}" for other, line in rooms_imported(file) if other not in allowed]
    assert stray == []


@pytest.mark.parametrize("file", [f for f in FILES if room_of(f) in {"core", "raft"}], ids=ids)
def test_a_pure_room_has_no_clock_chance_socket_or_thread(file: Path) -> None:
    tree = tree_of(file)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    wrong = [
        f"{ids(file)}:{line} imports {name}"
        for name, line in imported(file)
        if name.partition(".")[0] in IMPURE and line not in typing_only
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            wrong.append(f"{ids(file)}:{node.lineno} is asynchronous")
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in IMPURE_CALLS and not _reads_own_resource(file, node):
                wrong.append(f"{ids(file)}:{node.lineno} calls {name}()")
    assert wrong == []


def _reads_own_resource(file: Path, call: ast.Call) -> bool:
    """`importlib.resources` text that ships beside the module (schema.sql) is a constant, not input."""
    return "machine" in ids(file) and "files(" in ast.unparse(call)


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_sqlite_and_msgpack_stay_behind_their_one_door(file: Path) -> None:
    modules = {name.partition(".")[0] for name, _ in imported(file)}
    where = ids(file)
    if "sqlite3" in modules and room_of(file) in {"core", "raft"}:
        assert where.startswith("pistage/core/machine"), f"{where} imports sqlite3"
    if "msgpack" in modules:
        assert where == "pistage/wire/packing.py", f"{where} imports msgpack"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_file_says_what_it_owns_and_is_not_too_long(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{ids(file)} has no docstring"
    assert len(text.splitlines()) <= FILE_LINES_MAX, f"{ids(file)} is {len(text.splitlines())} lines"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_function_fits_a_screen(file: Path) -> None:
    long = [
        f"{ids(file)}:{node.lineno} {node.name} is {length} lines"
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []
