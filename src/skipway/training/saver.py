"""Writing beside training: one job at a time in a thread; what goes wrong there is raised at the next word with it."""

import threading
from collections.abc import Callable


class Saver:
    """A thread that writes while training goes on."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, job: Callable[[], object]) -> None:
        """Start a job once the one before is done.

        Raises:
            OSError: what the job before raised.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="skipway-saver")
        self._thread.start()

    def wait(self) -> None:
        """Until the job under way is done. Raises what it raised."""
        if self._thread:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Until the job under way is done, whatever came of it."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise what a job raised, if one did."""
        error, self._error = self._error, None
        if error:
            raise error

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
