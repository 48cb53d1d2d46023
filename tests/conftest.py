"""What all tests share: a test that needs the engine may not be skipped where scripts/test promised one."""

import gc
import os
from collections.abc import Generator

import pytest


def pytest_collection_finish() -> None:
    """The thousands of collected tests stay until the end; looking through them again and again took a tenth."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.get_closest_marker("engine") and os.environ.get("PISTAGE_TEST_ENGINE") == "required":
        report.outcome = "failed"
        report.longrepr = f"skipped although there is an engine: {report.longrepr}"
    return report
