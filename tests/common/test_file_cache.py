"""The cache: its limit, what is removed first, and what is never removed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import UserError
from common.file_cache import Cancelled, FileCache, Slot, open_cache
from tests.support import programs

ROOT = Path(__file__).parents[2]


def add(cache: FileCache, name: str, content: bytes) -> Path:
    slot = acquire(cache, name, len(content))
    if not slot.complete:
        slot.write(content)
        slot.finish()
    slot.close()
    return slot.path


def acquire(cache: FileCache, name: str, size: int, cancelled: threading.Event | None = None) -> Slot:
    digest = hashlib.sha1(name.encode()).hexdigest()
    return cache.acquire(digest, ".mp4", size, cancelled or threading.Event())


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def is_full(cache: FileCache, name: str, size: int) -> bool:
    """Whether there is no room for a file now."""
    cancelled = threading.Event()
    cancelled.set()
    try:
        acquire(cache, name, size, cancelled).close()
    except Cancelled:
        return True
    return False


def test_a_complete_file_is_found_again(tmp_path: Path):
    cache = FileCache(tmp_path, 100)
    path = add(cache, "a", b"abc")
    assert path.read_bytes() == b"abc"
    slot = acquire(cache, "a", 3)
    assert (slot.complete, slot.path) == (True, path)


def test_least_recently_used_file_is_removed_first(tmp_path: Path):
    cache = FileCache(tmp_path, 10)
    paths = {name: add(cache, name, name.encode() * 3) for name in "abc"}
    add(cache, "a", b"aaa")  # used again
    paths["d"] = add(cache, "d", b"dddd")
    assert {name for name, path in paths.items() if path.exists()} == {"a", "c", "d"}
    assert size_of(tmp_path) == 10


def test_files_in_use_stay_and_others_wait_for_room(tmp_path: Path):
    cache = FileCache(tmp_path, 10)
    add(cache, "a", b"aaaaaa")
    used = acquire(cache, "a", 6)
    assert is_full(cache, "b", 5)
    assert used.path.read_bytes() == b"aaaaaa"
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(acquire, cache, "b", 5)
        used.close()
        assert not waiting.result(programs.LIMIT).complete
    assert not used.path.exists()


def test_room_is_reserved_before_a_file_is_written(tmp_path: Path):
    cache = FileCache(tmp_path, 10)
    slot = acquire(cache, "a", 8)
    assert is_full(cache, "b", 3)
    slot.close()
    assert list(tmp_path.iterdir()) == []
    assert not is_full(cache, "b", 3)


def test_no_file_is_written_twice_at_a_time(tmp_path: Path):
    cache = FileCache(tmp_path, 100)
    first = acquire(cache, "a", 3)
    with ThreadPoolExecutor() as pool:
        second = pool.submit(acquire, cache, "a", 3)
        first.write(b"abc")
        first.finish()
        assert second.result(programs.LIMIT).complete


def test_incomplete_and_damaged_files_are_replaced(tmp_path: Path):
    cache = FileCache(tmp_path, 100)
    code = (
        "import os, sys, pathlib; from common.file_cache import FileCache; "
        f"slot = FileCache(pathlib.Path(sys.argv[1]), 100).acquire({hashlib.sha1(b'a').hexdigest()!r}, '.mp4', 90); "
        f"slot.write(b'xx'); os.kill(os.getpid(), {signal.SIGKILL})"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert size_of(tmp_path) == 90
    path = add(cache, "a", b"abc")
    path.write_bytes(b"damaged")
    assert add(cache, "a", b"abc").read_bytes() == b"abc"
    assert size_of(tmp_path) == 3


def test_files_of_others_are_never_removed(tmp_path: Path):
    others = [tmp_path / "clip.mp4", tmp_path / f"{'0' * 40}.mp4", tmp_path / ".clip.mp4.part"]
    for path in others:
        path.write_bytes(b"precious")
    target = tmp_path / "elsewhere"
    target.write_bytes(b"precious")
    (tmp_path / f"object-{'0' * 40}.mp4").symlink_to(target)
    with open_cache(tmp_path, 1):
        pass
    assert all(path.read_bytes() == b"precious" for path in (*others, target))


def test_a_cache_is_kept_within_its_limit_and_a_temporary_one_is_removed(tmp_path: Path):
    for name in "abc":
        add(FileCache(tmp_path, 100), name, b"123")
    with open_cache(tmp_path, 7) as cache:
        assert size_of(tmp_path) == 6
    assert size_of(tmp_path) == 6
    with open_cache(None, 7) as cache:
        assert add(cache, "a", b"123").exists()
        assert cache.folder.stat().st_mode & 0o077 == 0
    assert not cache.folder.exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_folder_that_is_not_writable(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=str(tmp_path)), open_cache(tmp_path, 7):
        pass


def test_full_disk_ends_the_run(tmp_path: Path):
    slot = acquire(FileCache(tmp_path, 100), "a", 3)
    with Path("/dev/full").open("r+b", buffering=0) as slot._file, pytest.raises(UserError, match="space"):
        slot.write(b"abc")
