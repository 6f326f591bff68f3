"""Files written whole or not at all, by one process at a time where it matters."""

from __future__ import annotations

import errno
import logging
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from .errors import InputError, one_line, reason

log = logging.getLogger(__name__)
# seconds after which a half-written file of another machine's counts as given up
GIVEN_UP = 24 * 3600.0
# seconds after which one that waits says so
PATIENCE = 10.0
# what file systems of clusters answer that have no locks
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
# says that files may stand for locks
SOFT = "BBX_SOFT_LOCKS"
# containers on two machines may share a host name and a process id
OWN = secrets.token_hex(4)
# whether ``locked`` waits for others
_patient: ContextVar[bool] = ContextVar("patient", default=True)


class Held(Exception):
    """Another process has the lock of ``path``; the text says which."""

    def __init__(self, path: Path) -> None:
        super().__init__(holder(path))
        self.path = path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and so that it outlives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = unfinished(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        # a full disk must not keep halves; who writes is not always told which file it was
        with suppress(OSError):
            part.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """``write_whole`` in UTF-8; bytes of paths that are none are kept."""
    write_whole(path, text.encode("utf-8", "surrogateescape"))


def unfinished(path: Path) -> Path:
    """What ``path`` is called while this process writes it."""
    return path.with_name(f".{path.name[:80]}.{_host()}.{os.getpid()}-{OWN}")


def _host() -> str:
    return re.sub(r"\W", "_", platform.node())[:40]


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to be filled, which gets its name when it is done, and is gone if that fails.

    Raises:
        InputError: there is one of that name by then.
    """
    part = unfinished(path)
    remove(part)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            raise InputError(f"{path} exists already; give another name")
        part.rename(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        with suppress(OSError):
            remove(part)


def sweep(folder: Path) -> None:
    """Remove what writers that are no more have left unfinished below a folder."""
    for part in folder.rglob(".*.*.*"):
        *_, host, number = part.name.split(".")
        number, _, token = number.partition("-")
        if not (number.isdecimal() and token):
            continue
        with suppress(OSError):
            given_up = time.time() - part.stat().st_mtime > GIVEN_UP
            if given_up or (host == _host() and not _lives(int(number))):
                remove(part)


def _lives(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def remove(path: Path) -> None:
    """Take away a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time is where ``path`` is locked; others can read who that is.

    Raises:
        InputError: the lock cannot be had, a folder in its place, say.
        Held: another process has it, below ``without_waiting``.
    """
    lock = _lock(path)
    note = _note(path)
    try:
        with suppress(OSError):
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
            note.write_text(f"{platform.node()}, process {os.getpid()}, since {since} UTC")
        yield
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _lock(path: Path) -> BaseFileLock:
    """The lock of ``path``, which this process now has."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path.parent}: not a folder") from error
    lock: BaseFileLock = FileLock(f"{path}.lock")
    try:
        _acquire(lock, path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(f"{path}.lock: cannot be locked ({reason(error)})") from error
        if not os.environ.get(SOFT):
            raise InputError(
                f"{path.parent}: its file system has no locks; {SOFT}=1 has files stand for them, "
                "which a kill leaves behind"
            ) from error
        # a file that exists while somebody works
        lock = SoftFileLock(f"{path}.softlock")
        _acquire(lock, path)
    return lock


def _acquire(lock: BaseFileLock, path: Path) -> None:
    if not _patient.get():
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise Held(path) from error
        return
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        log.warning(one_line(f"waiting for {holder(path)}, which has {lock.lock_file}"))
        lock.acquire()


@contextmanager
def without_waiting() -> Iterator[None]:
    """What is locked by another process inside raises ``Held``."""
    before = _patient.set(False)
    try:
        yield
    finally:
        _patient.reset(before)


def held(path: Path) -> bool:
    """Whether another process has the lock of ``path`` now."""
    try:
        with without_waiting():
            _lock(path).release()
    except Held:
        return True
    return False


def at_work(path: Path) -> str:
    """Who has the lock of ``path`` now, "" if nobody has; nothing is written."""
    # a kill leaves the note behind
    return holder(path) if _note(path).exists() and held(path) else ""


def holder(path: Path) -> str:
    """Who has the lock of ``path``, as far as that is known."""
    with suppress(OSError):
        return one_line(_note(path).read_text("utf-8", "replace"))[:200] or "another process"
    return "another process"


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")
