"""A small cache of things that are slow to load: one load a key, however many threads want it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class OnceCache(Generic[V]):
    """Keeps the last `limit` values. Errors are not kept: the next to ask tries again. Thread-safe."""

    def __init__(self, load: Callable[[str], V], limit: int) -> None:
        self._load = load
        self._limit = limit
        self._lock = Lock()
        self._kept: OrderedDict[str, V] = OrderedDict()
        self._flights: dict[str, Future[V]] = {}

    def peek(self, key: str) -> V | None:
        """The value if it is here."""
        with self._lock:
            value = self._kept.get(key)
            if value is not None:
                self._kept.move_to_end(key)
            return value

    def get(self, key: str) -> V:
        """The value, loaded if need be. Raises what loading raises."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            flight = self._flights.get(key)
            mine = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not mine:
            return flight.result()
        try:
            value = self._load(key)
        except BaseException as error:
            with self._lock:
                del self._flights[key]
            flight.set_exception(error)
            raise
        with self._lock:
            del self._flights[key]
            self._kept[key] = value
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        flight.set_result(value)
        return value
