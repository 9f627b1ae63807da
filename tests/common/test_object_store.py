"""Files in an object store: a local server that speaks the protocol of S3, and fsspec's store in memory."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import pytest

from common import object_store
from common.errors import ClipError, UserError
from common.file_cache import FileCache, open_cache
from common.object_store import Prefetcher, RemoteFile, list_files, local_copy
from tests.support.stores import Store, running_store

FILES = {"a.mp4": b"a" * 1000, "deep/b.mp4": b"b" * 2000, "notes.txt": b"text"}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", 10_000)


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in memory, with a folder `videos`."""
    store = fsspec.filesystem("memory")
    for name, content in FILES.items():
        store.pipe_file(f"/videos/{name}", content)
    yield store
    store.rm("/", recursive=True)


def read(file: RemoteFile) -> bytes:
    with local_copy(file) as path:
        return path.read_bytes()


def test_lists_and_reads_s3(store: Store, cache: FileCache):
    url = store.put_all("listed", FILES)
    store.put("listed2/other.mp4", b"not below the prefix")
    files = list_files(f"{url}/", cache)
    assert {name: read(file) for name, file in files.items()} == FILES
    assert str(files["deep/b.mp4"]) == f"{url}/deep/b.mp4"
    [(name, single)] = list_files(f"{url}/a.mp4", cache).items()
    assert (name, read(single), str(single)) == ("a.mp4", FILES["a.mp4"], f"{url}/a.mp4")
    assert list_files(f"{url}/none", cache) == {}


def test_reads_large_objects_in_blocks(store: Store, cache: FileCache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(object_store, "BLOCK", 700)
    [file] = list_files(store.put_all("blocks", {"a.mp4": os.urandom(5000)}), cache).values()
    assert read(file) == store.client.get_object(Bucket="videos", Key="blocks/a.mp4")["Body"].read()


@pytest.mark.usefixtures("memory")
def test_any_store_of_fsspec(cache: FileCache):
    assert {name: read(file) for name, file in list_files("memory://videos", cache).items()} == FILES


@pytest.mark.parametrize(
    "name", ["../../x.mp4", "/absolute.mp4", "a::file:///etc/passwd", f"{'n' * 250}.mp4", "*?.mp4"]
)
def test_names_are_not_trusted(store: Store, cache: FileCache, tmp_path: Path, name: str):
    url = store.put_all(f"hostile{len(name)}", {name: b"hostile"})
    [(found, file)] = list_files(url, cache).items()
    assert found == name
    with local_copy(file) as path:
        assert path.read_bytes() == b"hostile"
        assert path.parent == cache.folder
    assert list(tmp_path.iterdir()) == [cache.folder]


def test_a_replaced_object_has_another_stamp_and_copy(store: Store, cache: FileCache):
    url = store.put_all("replaced", {"a.mp4": b"before"})
    [before] = list_files(url, cache).values()
    assert list_files(url, cache)["a.mp4"].stamp == before.stamp
    assert read(before) == b"before"
    store.put("replaced/a.mp4", b"after!")
    [after] = list_files(url, cache).values()
    assert after.stamp != before.stamp
    assert read(after) == b"after!"


def test_objects_that_cannot_be_read(store: Store, cache: FileCache):
    url = store.put_all("broken", {"changed.mp4": b"before", "gone.mp4": b"gone", "good.mp4": b"good"})
    files = list_files(url, cache)
    store.put("broken/changed.mp4", b"after!")
    store.delete("broken/gone.mp4")
    for name in ("changed.mp4", "gone.mp4"):
        with pytest.raises(ClipError, match=f"{url}/{name}") as caught:
            read(files[name])
        assert caught.value.status == "unreadable"
    assert read(files["good.mp4"]) == b"good"
    assert len(list(cache.folder.iterdir())) == 1


@pytest.mark.usefixtures("memory")
def test_object_that_ends_early(cache: FileCache, monkeypatch: pytest.MonkeyPatch):
    file = list_files("memory://videos", cache)["a.mp4"]
    monkeypatch.setattr(RemoteFile, "_read", lambda _: iter([b"short"]))
    with pytest.raises(ClipError, match="5 bytes of 1000"):
        read(file)
    assert list(cache.folder.iterdir()) == []


@pytest.mark.usefixtures("memory")
def test_object_larger_than_the_cache(tmp_path: Path):
    file = list_files("memory://videos", FileCache(tmp_path, 1500))["deep/b.mp4"]
    with pytest.raises(ClipError, match=r"memory://videos/deep/b.mp4.*--cache-size") as caught:
        read(file)
    assert caught.value.status == "too_large"


@pytest.mark.usefixtures("memory")
def test_errors_name_the_url_instead_of_the_copy(cache: FileCache):
    file = list_files("memory://videos", cache)["a.mp4"]
    with pytest.raises(ClipError) as caught, local_copy(file) as path:
        raise ClipError(path, "is damaged")
    assert str(caught.value) == "memory://videos/a.mp4: is damaged"


@pytest.mark.parametrize(
    ("url", "variables", "reason"),
    [
        ("s3://no-such-bucket/videos", {}, "does not exist"),
        ("s3://videos/listed", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials"),
        ("nonsense://videos", {}, "nonsense"),
        ("gs://videos", {}, "pip install"),
    ],
)
@pytest.mark.usefixtures("store")
def test_url_that_cannot_be_listed(
    cache: FileCache, url: str, variables: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s3fs.S3FileSystem.cachable", False)
    with pytest.raises(UserError, match=f"(?s)^{url}: .*{reason}"):
        list_files(url, cache)


def test_missing_package(cache: FileCache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match="requirements-cluster"):
        list_files("s3://videos", cache)


@pytest.mark.parametrize("ahead", [0, 8])
def test_prefetcher_needs_room_for_one_file_only(memory: Any, tmp_path: Path, ahead: int):
    """All files are opened at once but, like those of decoders, read in order."""
    for number in range(20):
        memory.pipe_file(f"/many/{number:02}", bytes([number]) * 100)
    with open_cache(tmp_path, 150) as cache:
        files = Prefetcher(list_files("memory://many", cache).values(), ahead)
        with ExitStack() as stack:
            stack.callback(files.close)
            contents = []
            for file in list(files):
                with files.open(file) as path:
                    contents.append(path.read_bytes())
                    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 150
    assert contents == [bytes([number]) * 100 for number in range(20)]


@pytest.mark.usefixtures("memory")
def test_prefetcher_downloads_ahead(cache: FileCache, monkeypatch: pytest.MonkeyPatch):
    finished = {name: threading.Event() for name in ("a.mp4", "deep/b.mp4", "notes.txt")}
    download = RemoteFile.download

    def record(file: RemoteFile, *args: Any) -> None:
        download(file, *args)
        finished[file.url.removeprefix("memory://videos/")].set()

    monkeypatch.setattr(RemoteFile, "download", record)
    files = Prefetcher(list_files("memory://videos", cache).values(), ahead=1)
    assert str(next(iter(files))) == "memory://videos/a.mp4"
    assert finished["deep/b.mp4"].wait(60)
    files.close()
    assert not finished["notes.txt"].is_set()


@pytest.mark.usefixtures("memory")
def test_closing_a_prefetcher_ends_waiting(tmp_path: Path):
    listed = list_files("memory://videos", FileCache(tmp_path, 2500))
    files = Prefetcher([listed["deep/b.mp4"], listed["a.mp4"]])
    first, second = files
    with files.open(first):
        threading.Timer(0.2, files.close).start()
        with pytest.raises(ClipError, match="cancelled"), files.open(second):
            pass


def test_prefetcher_passes_local_files_through(tmp_path: Path):
    files = Prefetcher([tmp_path])
    for file in files:
        with files.open(file) as path:
            assert path == tmp_path
