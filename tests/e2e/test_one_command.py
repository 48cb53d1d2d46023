"""`pistage run FILE` on an engine, from nothing to nothing: no server, no configuration, no leftovers."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Engine

pytestmark = [pytest.mark.engine, pytest.mark.slow]

EXAMPLES = Path(__file__).parent.parent.parent / "conf" / "examples"


@pytest.mark.parametrize("name", ["demo.yaml", "etl.yaml", "pipeline.json"])
async def test_an_example_runs_and_leaves_nothing_on_the_engine(tmp_path: Path, engine: Engine, name: str) -> None:
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "DOCKER_HOST": f"unix://{engine.socket}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pistage", "run", str(EXAMPLES / name), env=environ, cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert not await engine.leftovers()
