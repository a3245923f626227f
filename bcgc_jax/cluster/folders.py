"""Private folders in the temporary directory: made, swept once their process is gone, and checked."""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # another system: nothing is swept there
    fcntl = None  # type: ignore[assignment]

# Each is locked by its process for as long as it runs.
_PREFIX, _LOCK = "bcgc-", "lock"
# Letters of a place that leave room for a socket's: its path has 103 at most, on Linux 107, and Ray adds some
# 70 to the folder's.
_SHORT = 20


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """One of mode 700, to be gone at the end, in a place of few letters if there is one."""
    places = os.environ.get("RAY_TMPDIR", ""), tempfile.gettempdir(), "/tmp"
    place = next((each for each in places if 0 < len(each) <= _SHORT), tempfile.gettempdir())
    _sweep(place)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
    handle = os.open(os.path.join(folder, "new"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
            os.rename(os.path.join(folder, "new"), os.path.join(folder, _LOCK))
        yield folder
    finally:
        for _ in range(10):  # Ray's last processes write while they end
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)
        os.close(handle)


def _sweep(place: str) -> None:
    """Remove what killed processes of this user have left: private folders whose lock nobody holds."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(place):
            if entry.name.startswith(_PREFIX) and is_safe(entry.path, private=True):
                with contextlib.suppress(OSError):  # it is not there yet, or held
                    handle = os.open(os.path.join(entry.path, _LOCK), os.O_RDWR | os.O_NOFOLLOW)
                    with contextlib.closing(os.fdopen(handle)):
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(entry.path, ignore_errors=True)


def is_safe(path: str, *, private: bool = False) -> bool:
    """Whether it is a folder of this user's own that nobody else can write to, or even look into."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return own and stat.S_ISDIR(found.st_mode) and not found.st_mode & (0o077 if private else 0o022)
