"""The archive: an object store in which output of old runs is kept, by way of the optional package obstore.

Every call here blocks, and belongs into a thread. What the store does not answer in time is PistageError `unavailable`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pistage.errors import Code, PistageError

_ANSWER: Final = timedelta(seconds=30)  # of one request; a part of an upload is 5 MiB
_RETRIES_MAX: Final = 3
_PATIENCE: Final = timedelta(seconds=60)  # of all tries together


class Archive:
    """Objects below one URL: s3://bucket/prefix, or file:///directory; gs:// and az:// as obstore has them.

    Credentials and endpoint come from the environment, as everywhere: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on.
    """

    def __init__(self, url: str) -> None:
        """PistageError `usage` where the package is missing, or the URL names no store."""
        self.url = url
        self._obstore = _package()
        try:
            self._store: Any = self._obstore.store.from_url(
                url,
                client_options={"timeout": _ANSWER, "allow_http": _is_plain()} if "file" not in url[:4] else None,
                retry_config={"max_retries": _RETRIES_MAX, "retry_timeout": _PATIENCE},
            )
        except Exception as error:  # whatever the package has for a URL that it does not like
            raise PistageError(
                Code.USAGE,
                f"archive: {url} is no object store: {_first_line(error)}",
                hint="for example s3://bucket/prefix, with AWS_ACCESS_KEY_ID and the rest in the environment",
            ) from None

    def put(self, name: str, path: Path) -> None:
        """Store the file as an object; what had the name before is replaced. It is there, whole, on return.

        FileNotFoundError where there is no file.
        """
        size = path.stat().st_size
        with self._told(f"{name} could not be stored"):
            self._obstore.put(self._store, name, path)
            stored = self._obstore.head(self._store, name)["size"]
        if stored != size:
            raise PistageError(Code.UNAVAILABLE, f"the archive {self.url} holds {stored:,} bytes of {name}")

    def size(self, name: str) -> int | None:
        """How large an object is; None where there is none."""
        with self._told(f"{name} could not be looked at"):
            try:
                return int(self._obstore.head(self._store, name)["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of an object. PistageError `storage` where it is gone."""
        if not length:
            return b""
        with self._told(f"{name} could not be read"):
            try:
                return bytes(self._obstore.get_range(self._store, name, start=offset, length=length))
            except FileNotFoundError:
                raise PistageError(Code.STORAGE, f"the archive {self.url} has lost {name}") from None

    def delete_below(self, name: str) -> int:
        """Delete every object whose name begins with `name` and a slash; how many there were."""
        deleted = 0
        with self._told(f"{name} could not be deleted"):
            for page in self._obstore.list(self._store, prefix=name):
                names = [one["path"] for one in page if one["path"].startswith(f"{name}/")]
                if names:
                    self._obstore.delete(self._store, names)
                deleted += len(names)
        return deleted

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except PistageError:
            raise
        except Exception as error:  # the package's own, and those of the system below it
            raise PistageError(Code.UNAVAILABLE, f"the archive {self.url}: {what}: {_first_line(error)}") from None


@lru_cache(maxsize=16)
def archive_at(url: str) -> Archive:
    """The archive at a URL, opened once."""
    return Archive(url)


def _package() -> ModuleType:
    try:
        import obstore  # noqa: PLC0415 - optional
        import obstore.store  # noqa: PLC0415
    except ImportError:
        raise PistageError(
            Code.USAGE, "an archive needs the package obstore", hint="pip install 'pistage[archive]'"
        ) from None
    return obstore


def _is_plain() -> bool:
    """Whether the endpoint was given as http://, for a store of one's own."""
    return os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
