"""Pass items between two stages through a bounded queue that can be aborted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Aborted(Exception):
    """Raised in threads that wait at a channel when the pipeline stops."""


class Channel(Generic[T]):
    """A first-in, first-out queue of at most ``capacity`` items."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = Condition()
        self._closed = False
        self._aborted = False

    def put(self, item: T) -> None:
        """Append an item; wait while the channel is full."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or len(self._items) < self._capacity)
            if self._aborted:
                raise Aborted
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take items, waiting for each, until the channel is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._aborted or self._items or self._closed)
                if self._aborted:
                    raise Aborted
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    @property
    def is_empty(self) -> bool:
        """Whether taking an item would wait."""
        with self._changed:
            return not self._items

    def check(self) -> None:
        """Raise :class:`Aborted` if the pipeline stops."""
        if self._aborted:
            raise Aborted

    def close(self) -> None:
        """Declare that no more items follow."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Wake all waiting threads with :class:`Aborted`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
