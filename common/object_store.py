"""Files in an object store, such as S3, that are read through a cache on the local disk.

The package fsspec, which is optional, lists and reads them. Their names are not trusted: a file in the cache is named
by a hash.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import ClipError, UserError
from common.file_cache import NEVER, Cancelled, FileCache, Slot
from common.text import plural, shorten

# Bytes per request, and number of files that are downloaded concurrently.
BLOCK, DOWNLOADS = 8 * 2**20, 4
GIB = 2**30
# Keys of the properties of a file that change with its content, the best first; they depend on the store.
VERSIONS = ("ETag", "etag", "md5Hash", "md5", "LastModified", "last_modified", "mtime", "updated", "created")
AGAIN = "Run the same command again"
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


@dataclass(frozen=True)
class RemoteFile:
    """A file in an object store.

    Attributes:
        url: its URL, for messages.
        root: the URL that was listed.
        path: its path in the store.
        size: size in bytes; None if the store does not tell.
        stamp: changes with the content, see `_stamp`.
        cache: where copies are kept.
    """

    url: str
    root: str
    path: str
    size: int | None
    stamp: list[Any]
    cache: FileCache

    def __str__(self) -> str:
        return self.url

    def reserve(self, cancelled: threading.Event = NEVER) -> Slot:
        """Return its place in the cache, waiting for room.

        Raises:
            ClipError: the file is larger than the cache.
            Cancelled: the wait has been cancelled.
            UserError: the cache cannot be written to.
        """
        if self.size is None:
            raise ClipError(self.url, "the store does not tell its size. Download it, and score the local file")
        if self.size > self.cache.limit:
            reason = f"its size of {self.size / GIB:.3g} GiB exceeds the cache of {self.cache.limit / GIB:.3g} GiB"
            raise ClipError(self.url, f"{reason}. Raise --cache-size", "too_large")
        digest = hashlib.sha256(json.dumps([self.root, self.path, self.stamp]).encode()).hexdigest()[:40]
        suffix = PurePosixPath(self.path).suffix
        return self.cache.acquire(digest, suffix if _SUFFIX.fullmatch(suffix) else "", self.size, cancelled)

    def download(self, slot: Slot, cancelled: threading.Event = NEVER) -> None:
        """Write the file to its place in the cache, unless it is there. The place is given up on an error.

        Raises:
            ClipError: the file cannot be read, or has changed since it was listed.
            Cancelled: the download has been cancelled.
            UserError: the cache cannot be written to.
        """
        if slot.complete:
            return
        try:
            size = 0
            for block in self._read():
                if cancelled.is_set():
                    raise Cancelled
                slot.write(block)
                size += len(block)
            if size != self.size:
                raise ClipError(self.url, f"ends after {plural(size, 'byte')} of {self.size}. {AGAIN}")
            slot.finish()
        except BaseException:
            slot.close()
            raise

    def _read(self) -> Iterator[bytes]:
        """Yield the content in blocks. Raises ClipError."""
        try:
            store, _ = _connect(self.root)
            if _stamp(store.info(self.path)) != self.stamp:
                raise ClipError(self.url, f"has changed since it was listed. {AGAIN}")
            with store.open(self.path, "rb", cache_type="none") as source:
                yield from iter(partial(source.read, BLOCK), b"")
        except ClipError:
            raise
        except Exception as error:  # each store has exceptions of its own
            raise ClipError(self.url, f"cannot be read ({_describe(error)})") from error

    @contextmanager
    def opened(self, slot: Slot) -> Iterator[Path]:
        """Yield the path of the copy, which is not removed within the block. A ClipError of it names the URL."""
        with closing(slot):
            try:
                yield slot.path
            except ClipError as error:
                error.args = (str(error).replace(str(slot.path), self.url),)
                raise


File = Path | RemoteFile


@contextmanager
def local_copy(file: File) -> Iterator[Path]:
    """Yield the path of a file or of its copy, which is not removed within the block.

    Raises:
        ClipError: the file cannot be read.
        UserError: the cache cannot be written to.
    """
    if isinstance(file, Path):
        yield file
        return
    slot = file.reserve()
    file.download(slot)
    with file.opened(slot) as path:
        yield path


class Prefetcher:
    """Files in order, of which those in an object store are downloaded before they are used.

    They get their room in the cache in this order, so that it suffices if one fits at a time.

    Args:
        files: the files, each of which is yielded before it is used.
        ahead: number of files that are downloaded before they are yielded.
    """

    def __init__(self, files: Iterable[File], ahead: int = 0):
        self._files, self._ahead = files, ahead
        self._cancelled = threading.Event()
        self._reserving = ThreadPoolExecutor(1, "reserve")
        self._downloading = ThreadPoolExecutor(DOWNLOADS, "download")
        self._slots: dict[str, Future[Slot]] = {}

    def __iter__(self) -> Iterator[File]:
        started: deque[File] = deque()
        for file in self._files:
            if isinstance(file, RemoteFile):
                reserved = self._reserving.submit(file.reserve, self._cancelled)
                self._slots[file.url] = self._downloading.submit(self._download, file, reserved)
            started.append(file)
            if len(started) > self._ahead:
                yield started.popleft()
        yield from started

    @contextmanager
    def open(self, file: File) -> Iterator[Path]:
        """Yield the path of a file that has been yielded, as `local_copy` does."""
        if isinstance(file, Path):
            yield file
            return
        try:
            slot = self._slots.pop(file.url).result()
        except (Cancelled, CancelledError):
            raise ClipError(file.url, "the download was cancelled") from None
        with file.opened(slot) as path:
            yield path

    def close(self) -> None:
        """Stop the downloads."""
        self._cancelled.set()
        for pool in (self._reserving, self._downloading):
            pool.shutdown(cancel_futures=True)

    def _download(self, file: RemoteFile, reserved: Future[Slot]) -> Slot:
        slot = reserved.result()
        file.download(slot, self._cancelled)
        return slot


def list_files(url: str, cache: FileCache) -> dict[str, RemoteFile]:
    """Return the files below a URL, or the one at the URL, by name. A name is the path below the URL.

    Args:
        url: a URL that fsspec supports, for example `s3://bucket/folder`.
        cache: where copies are kept.

    Raises:
        UserError: the URL does not exist or cannot be listed, or a package is missing.
    """
    try:
        store, root = _connect(url)
        store.invalidate_cache()
        found: Mapping[str, Mapping[str, Any]] = store.find(root, detail=True)
        found = {path: info if info.get("size") is not None else store.info(path) for path, info in found.items()}
    except ImportError as error:
        remedy = "Run pip install -r requirements-cluster.txt (for S3)"
        raise UserError(f"{url}: needs an optional package ({_describe(error)}). {remedy}") from None
    except FileNotFoundError as error:
        raise UserError(f"{url}: does not exist ({_describe(error)}). Correct the URL") from None
    except Exception as error:  # each store has exceptions of its own
        remedy = "Correct the URL, the credentials or the endpoint, see docs/prediction.md"
        raise UserError(f"{url}: cannot be listed ({_describe(error)}). {remedy}") from error
    if list(found) == [root]:
        return {PurePosixPath(root).name: _file(url, url, root, found[root], cache)}
    base = root.rstrip("/") + "/"
    names = {path.removeprefix(base): path for path in found if path.startswith(base)}
    address = url.rstrip("/")
    return {name: _file(f"{address}/{name}", url, names[name], found[names[name]], cache) for name in sorted(names)}


def _connect(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it."""
    from fsspec.core import url_to_fs

    for library in ("aiobotocore", "botocore"):  # they log where they found the credentials
        logging.getLogger(library).setLevel(logging.WARNING)
    return url_to_fs(url)


def _file(url: str, root: str, path: str, info: Mapping[str, Any], cache: FileCache) -> RemoteFile:
    return RemoteFile(url, root, path, info.get("size"), _stamp(info), cache)


def _stamp(info: Mapping[str, Any]) -> list[Any]:
    """Return the stamp of a file from its properties: its size and its version."""
    version = next((info[key] for key in VERSIONS if info.get(key)), None)
    if isinstance(version, datetime):  # some stores give both datetimes and timestamps
        version = version.timestamp()
    return [info.get("size"), None if version is None else str(version)]


def _describe(error: Exception) -> str:
    """Format an exception, which may lack a message, in one line."""
    return shorten(" ".join(f"{type(error).__name__}: {error}".split()))
