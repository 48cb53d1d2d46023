"""Packages for scripts to require, and the directories of them that an agent is given: a wheel, and what `npm pack`
would make."""

import io
import json
import tarfile
import zipfile
from pathlib import Path


def wheel(directory: Path, name: str, version: str, code: str) -> Path:
    """A wheel with one module, called as the package."""
    info = f"{name}-{version}.dist-info"
    file = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(f"{name}.py", code)
        packed.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        packed.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        packed.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return file


def tarball(directory: Path, name: str, version: str, code: str) -> Path:
    """What `npm pack` makes of a package with one file."""
    file = directory / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    described = json.dumps({"name": name, "version": version, "main": "index.js"})
    with tarfile.open(file, "w:gz") as packed:
        for path, text in (("package/package.json", described), ("package/index.js", code)):
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(text), 0o644
            packed.addfile(member, io.BytesIO(text.encode()))
    return file


def write_both(directory: Path) -> Path:
    """A directory with `greeting` for both languages, in two versions."""
    directory.mkdir(exist_ok=True)
    for version in ("1.0.0", "1.10.0"):
        wheel(directory, "greeting", version, f"def greet(name):\n    return f'hello {{name}} from {version}'\n")
        tarball(directory, "greeting", version, f"exports.greet = (name) => `hello ${{name}} from {version}`\n")
    return directory
