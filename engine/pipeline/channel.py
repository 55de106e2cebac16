"""Pass items between two stages through a bounded queue that can be aborted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Aborted(Exception):
    """The pipeline stops; whoever waits at a channel gets this."""


class Channel(Generic[T]):
    """First in, first out, at most ``capacity`` items."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = Condition()
        self._closed = False
        self._aborted = False

    def put(self, item: T) -> None:
        """Append, waiting for room."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or len(self._items) < self._capacity)
            if self._aborted:
                raise Aborted
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take items, waiting for them, until the channel is closed and empty."""
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

    def close(self) -> None:
        """No items follow."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Wake everybody with :class:`Aborted`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
