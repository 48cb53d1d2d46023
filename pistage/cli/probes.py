"""What can run steps here: does an engine answer, can a sandbox be made; asked without starting anything."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pistage.errors import PistageError

_PATIENCE_S: Final = 5.0
_PULL_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Whether a runtime can be used, and what it is, or why not."""

    is_usable: bool
    reason: str


async def probe_engine(address: str = "") -> Probe:
    """Ask the engine at `address` (DOCKER_HOST, else the usual socket, unless given) for its version."""
    from pistage.agent.runtimes.engine import Engine, EngineError, EngineGoneError

    engine = Engine(address)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            version = await engine.connect()
    except TimeoutError:
        return Probe(is_usable=False, reason=f"the engine at {engine.address} does not answer")
    except EngineGoneError:  # aiodocker's own words for it name a host that does not exist
        return Probe(is_usable=False, reason=f"no engine answers at {engine.address}")
    except (EngineError, ValueError) as error:
        return Probe(is_usable=False, reason=f"the engine at {engine.address} refused: {error}")
    finally:
        await engine.close()
    return Probe(is_usable=True, reason=f"version {version.get('Version', 'unknown')} at {engine.address}")


async def probe_image(image: str, address: str = "") -> Probe:
    """Whether the engine has `image`, or can pull it."""
    from pistage.agent.runtimes.engine import Engine, EngineError, EngineGoneError

    engine = Engine(address)
    try:
        async with asyncio.timeout(_PULL_S):
            await engine.connect()
            if await engine.image(image) is not None:
                return Probe(is_usable=True, reason="the engine has it")
            await engine.pull(image, None, timeout_s=_PULL_S)
    except TimeoutError:
        return Probe(is_usable=False, reason=f"it could not be pulled in {_PULL_S:g} s")
    except (EngineGoneError, EngineError, ValueError) as error:
        return Probe(is_usable=False, reason=f"it cannot be pulled: {error}")
    finally:
        await engine.close()
    return Probe(is_usable=True, reason="pulled")


async def probe_sandbox() -> Probe:
    """Make a sandbox in a directory of its own and end it."""
    from pistage.agent.runtimes.sandbox import find_wrapper

    with tempfile.TemporaryDirectory(prefix="pistage-probe-") as scratch:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                wrapper = await find_wrapper(Path(scratch))
        except TimeoutError:
            return Probe(is_usable=False, reason="making a sandbox took too long")
        except PistageError as error:
            return Probe(is_usable=False, reason=error.message)
    return Probe(is_usable=True, reason=wrapper.__name__)
