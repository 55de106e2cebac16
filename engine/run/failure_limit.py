"""Stop a run in which too many images fail."""

from __future__ import annotations

from threading import Lock

from combicam.errors import RunError


class FailureLimit:
    """Counts the images of a run that failed, in any thread.

    Args:
        most: how many may fail; None for no limit.
        failures: failed rows that are committed already.
    """

    def __init__(self, most: int | None = None, failures: int = 0) -> None:
        self._most = most
        self._failures = failures
        self._lock = Lock()

    def count(self, failures: int, last: str | None) -> None:
        """Count failures, if possible before their shard is committed.

        Args:
            failures: how many to add.
            last: id and error of the last of them.

        Raises:
            RunError: more failures than the limit.
        """
        with self._lock:
            self._failures += failures
        if self._most is not None and self._failures > self._most:
            raise RunError(
                f"run: expected at most {self._most} failed images (max_failures), got "
                f"{self._failures} (the last: {last}); see the errors of the committed shards, or "
                "raise the limit and run again: committed shards are kept"
            )
