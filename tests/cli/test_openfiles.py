"""Open files: a master may have as many as it needs, or says that it may not."""

import resource
from collections.abc import Iterator

import pytest

from pistage.cli.openfiles import allow_many_open_files


@pytest.fixture(autouse=True)
def limits_as_they_were() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_low_limit_is_raised_and_a_high_one_stays(caplog: pytest.LogCaptureFixture) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    for wanted in (600, 550):
        assert allow_many_open_files(wanted) == wanted
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (600, hard)
    assert not caplog.records


def test_a_system_that_allows_fewer_is_told(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard != resource.RLIM_INFINITY
    assert allow_many_open_files(hard + 1) == hard
    assert "may have" in caplog.text
    assert soft <= hard
