"""A connection of the worker's own, made again when it fails.

It speaks to libpq by psycopg.pq: a call can be given up at any moment, which closes the
connection without waiting for a server that may be mute, and rows cost no conversions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Optional, Union

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from ._errors import refused, translated

Connect = Callable[[], Awaitable["psycopg.AsyncConnection[Any]"]]
Row = list[Optional[bytes]]


def connector(db: Any, timeout: float) -> Connect:
    """How to connect as db does: a conninfo text, a pool, a connection, or a function that connects."""
    kwargs: dict[str, Any] = {}
    if isinstance(db, str):
        conninfo = db
    elif isinstance(db, psycopg.BaseConnection):
        conninfo = db.info.dsn
        kwargs = {"password": db.info.password} if db.info.password else {}
    elif hasattr(db, "conninfo"):
        conninfo = db.conninfo
        # The rest are psycopg's own words, which only its connections understand.
        given = getattr(db, "kwargs", None) or {}
        ours = ("autocommit", "row_factory", "cursor_factory", "context", "prepare_threshold")
        kwargs = {k: v for k, v in given.items() if k not in ours}
    elif callable(db):
        connect: Connect = db
        return connect
    else:
        raise TypeError(f"no conninfo, pool, connection or function that connects: {db!r}")
    kwargs.setdefault("connect_timeout", max(2, int(timeout)))

    async def connect_by_conninfo() -> psycopg.AsyncConnection[Any]:
        conn: psycopg.AsyncConnection[Any]
        conn = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, **kwargs)
        return conn

    return connect_by_conninfo


class ConnectionFailed(psycopg.OperationalError):
    """The connection failed, or did not answer in time."""


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures: 0.1 to 5, with jitter."""
    pause: float = min(5.0, 0.1 * 2 ** min(failures, 10))
    return pause * random.uniform(0.5, 1)


class Session:
    def __init__(
        self,
        connect: Connect,
        name: str,
        timeout: float,
        prepares: bool,
        wakes: Optional[Callable[[], None]] = None,
    ) -> None:
        self._connect = connect
        self._name = name
        self._timeout = timeout
        self._prepares = prepares
        self._wakes = wakes
        self._lock = asyncio.Lock()
        self._conn: Optional[psycopg.AsyncConnection[Any]] = None
        self._fd = -1
        self._prepared: dict[str, bytes] = {}
        self._waiter: Optional[asyncio.Future[None]] = None
        self.dropped = asyncio.Event()  # the connection is gone, or was never there
        self.dropped.set()

    async def call(self, sql: str, params: Sequence[Union[bytes, str, int, None]]) -> list[Row]:
        """Runs one statement, in a transaction of its own, and gives its rows as text."""
        values = [
            p.encode() if isinstance(p, str) else b"%d" % p if isinstance(p, int) else p
            for p in params
        ]
        async with self._lock:
            done = False
            try:
                rows = await asyncio.wait_for(self._call(sql, values), self._timeout)
                done = True
                return rows
            except asyncio.TimeoutError:
                raise ConnectionFailed(
                    f"{self._name}: no answer within {self._timeout:g} s"
                ) from None
            except psycopg.Error as e:
                done = refused(e)
                raise translated(e)
            finally:
                if not done:  # A call half done is nobody's.
                    self.drop()

    async def _call(self, sql: str, values: list[Optional[bytes]]) -> list[Row]:
        if self._conn is None:
            await self._open()
        assert self._conn is not None
        pgconn = self._conn.pgconn
        if not self._prepares:
            pgconn.send_query_params(sql.encode(), values)
            return self._rows(await self._answer(pgconn))
        name = self._prepared.get(sql)
        if name is None:
            name = b"openqueue_%d" % len(self._prepared)
            pgconn.send_prepare(name, sql.encode())
            self._rows(await self._answer(pgconn))
            self._prepared[sql] = name
        pgconn.send_query_prepared(name, values)
        return self._rows(await self._answer(pgconn))

    async def _open(self) -> None:
        conn = await self._connect()
        if not conn.autocommit:
            await conn.set_autocommit(True)
        if conn.pgconn.parameter_status(b"client_encoding") != b"UTF8":
            await conn.execute("select set_config('client_encoding', 'UTF8', false)")
        self._conn, self._fd, self._prepared = conn, conn.pgconn.socket, {}
        conn.pgconn.nonblocking = 1
        self.dropped.clear()
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    async def _answer(self, pgconn: Any) -> Any:
        loop = asyncio.get_running_loop()
        while pgconn.flush():
            writable = self._waiter = loop.create_future()
            loop.add_writer(self._fd, self._go_on)  # Or something to read, which comes first.
            try:
                await writable
            finally:
                self._waiter = None
                loop.remove_writer(self._fd)
            if self._conn is None:
                raise ConnectionFailed(f"{self._name}: the connection was lost")
        answer = None
        while True:
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    self._notified()
                    return answer
                answer = result
            self._waiter = loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            if self._conn is None:
                raise ConnectionFailed(f"{self._name}: the connection was lost")

    def _go_on(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _readable(self) -> None:
        assert self._conn is not None
        try:
            self._conn.pgconn.consume_input()
            if self._waiter is None:
                self._notified()
        except psycopg.Error:
            if self._waiter is None:
                self.drop()
        # Else whoever waits finds the server's last words, such as why it went away.
        self._go_on()

    def _notified(self) -> None:
        """Wakes whoever sleeps, if there was a notification."""
        if self._conn is None:
            return
        some = False
        while self._conn.pgconn.notifies():
            some = True
        if some and self._wakes is not None:
            self._wakes()

    def _rows(self, result: Any) -> list[Row]:
        if result is None:
            raise ConnectionFailed(f"{self._name}: the connection was lost")
        if result.status == pq.ExecStatus.TUPLES_OK:
            columns = range(result.nfields)
            value = result.get_value
            return [[value(i, j) for j in columns] for i in range(result.ntuples)]
        if result.status == pq.ExecStatus.COMMAND_OK:
            return []
        raise error_from_result(result)

    def drop(self) -> None:
        """Closes the connection, at once."""
        if self._conn is None:
            return
        conn, self._conn = self._conn, None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        loop.remove_writer(self._fd)
        conn.pgconn.finish()
        self.dropped.set()
        self._go_on()
