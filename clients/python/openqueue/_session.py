"""A connection of the worker's own, made again when it fails.

It speaks to libpq by psycopg.pq: a call can be given up at any moment, which closes the
connection without waiting for a server that may be mute, and rows cost no conversions.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import error_from_result

from ._errors import locked, refused, sqlstate, translated

Connect = Callable[[], Awaitable["psycopg.AsyncConnection[Any]"]]
Connector = Callable[..., Awaitable["psycopg.AsyncConnection[Any]"]]
Row = list[bytes | None]


def each_host(params: Mapping[str, Any]) -> list[dict[str, str]]:
    """What tells the hosts of a conninfo apart, where there are several."""
    lists = {k: str(params[k]).split(",") for k in ("host", "hostaddr", "port") if params.get(k)}
    n = max([1, *(len(values) for k, values in lists.items() if k != "port")])
    # libpq has an opinion of other lists, and looks twice for a standby.
    if n == 1 or params.get("target_session_attrs") == "prefer-standby":
        return [{}]
    if any(len(values) not in (1, n) for values in lists.values()):
        return [{}]
    return [{k: values[i % len(values)] for k, values in lists.items()} for i in range(n)]


def connector(db: Any, timeout: float) -> Connector:
    """How to connect as db does: a conninfo text, a pool, a connection, or a function that connects.

    What it gives takes so many seconds, shared by the hosts where there are several: one that is mute,
    as a primary that is gone, must not take them from the others.
    """
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

        async def connect_by_function(within: float = timeout) -> psycopg.AsyncConnection[Any]:
            made = db()
            if not inspect.isawaitable(made):
                raise TypeError(f"{db!r} gives no awaitable psycopg.AsyncConnection: {made!r}")
            conn: psycopg.AsyncConnection[Any] = await made
            return conn

        return connect_by_function
    else:
        raise TypeError(f"no conninfo, pool, connection or function that connects: {db!r}")
    params = conninfo_to_dict(conninfo)
    hosts = each_host({**params, **kwargs})
    if "connect_timeout" not in params:
        kwargs.setdefault("connect_timeout", max(2, int(min(timeout, 2**31 - 1))))

    async def connect_by_conninfo(within: float = timeout) -> psycopg.AsyncConnection[Any]:
        conn: psycopg.AsyncConnection[Any]
        errors: list[Exception] = []
        for host in hosts:
            try:
                async with asyncio.timeout(within / len(hosts)):
                    conn = await psycopg.AsyncConnection.connect(
                        conninfo, autocommit=True, **{**kwargs, **host}
                    )
                return conn
            except (psycopg.Error, TimeoutError) as e:
                errors.append(e)
        raise next((e for e in errors if not no_session(e)), errors[-1])

    return connect_by_conninfo


class ConnectionFailed(psycopg.OperationalError):
    """The connection failed, or did not answer in time. The error of a server that would have no session
    is its cause."""


_NO_SESSION = re.compile(
    r'" does not exist|authentication failed|no pg_hba\.conf entry|not permitted to log in'
    r"|permission denied for database|no such (database|user)"
)


def no_session(error: BaseException | None) -> bool:
    """Whether the server answered a connect by a refusal that will hold: no such database or role, a
    wrong password.

    In psycopg 3.1 errors of connecting have no SQLSTATE: there the server's English words say it, of
    each address tried. Where it speaks another language it counts as one that failed.
    """
    if not isinstance(error, psycopg.Error):
        return False
    if sqlstate(error):
        return refused(error)
    tried = [line for line in str(error).splitlines() if " failed: " in line]
    return bool(tried) and all("FATAL: " in line and _NO_SESSION.search(line) for line in tried)


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures: 0.1 to 5, with jitter."""
    pause: float = min(5.0, 0.1 * 2 ** min(failures, 10))
    return pause * random.uniform(0.5, 1)


class Session:
    """One call at a time. ``wakes`` is called on a notification, ``lost`` when the connection goes."""

    def __init__(
        self,
        connect: Connector,
        name: str,
        prepares: bool,
        wakes: Callable[[], None] | None = None,
        lost: Callable[[], None] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._connect = connect
        self._name = name
        self._prepares = prepares
        self._wakes = wakes
        self._lost = lost
        # Above READ COMMITTED a lost lease is 40001 and no answer, for all that the same call asks for.
        settings = {"default_transaction_isolation": "read committed", **(settings or {})}
        self._settings = "select " + ", ".join(
            f"set_config('{name}', '{value}', false)" for name, value in settings.items()
        )
        self._lock = asyncio.Lock()
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._fd = -1
        self._prepared: dict[str, bytes] = {}
        self.sent = 0.0
        """When the last call was sent, once there was a connection."""
        self._since = 0.0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def connected(self) -> bool:
        return self._conn is not None

    @property
    def since(self) -> float:
        """When the connection was made; where there is none, it is still to be."""
        return self._since if self.connected else math.inf

    async def connect(self, timeout: float) -> None:
        """Connects, where there is no connection."""
        async with self._lock:
            try:
                async with asyncio.timeout(timeout):
                    if self._conn is None:
                        await self._open(timeout)
            except TimeoutError:
                raise ConnectionFailed(f"{self._name}: no answer within {timeout:g} s") from None

    async def call(
        self, sql: str, params: Sequence[bytes | str | int | None], timeout: float
    ) -> list[Row]:
        """Runs one statement, in a transaction of its own, and gives its rows as text."""
        values = [
            p.encode() if isinstance(p, str) else b"%d" % p if isinstance(p, int) else p
            for p in params
        ]
        async with self._lock:
            done = False
            try:
                async with asyncio.timeout(timeout) as limit:
                    try:
                        if self._conn is None:
                            await self._open(timeout)
                            if limit.expired():  # A function that connects may swallow that.
                                raise TimeoutError
                            # The server's time, statement_timeout, begins with the call and must end before ours.
                            limit.reschedule(asyncio.get_running_loop().time() + timeout)
                        rows = await self._call(sql, values)
                        done = True
                        return rows
                    except psycopg.Error as e:
                        done = refused(e) or locked(e)
                        raise translated(e)
                    finally:
                        # A call half done is nobody's. At once: libpq may have closed its socket,
                        # and the next one to be opened has the same number.
                        if not done:
                            self.drop()
            except TimeoutError:
                raise ConnectionFailed(f"{self._name}: no answer within {timeout:g} s") from None

    async def _call(self, sql: str, values: list[bytes | None]) -> list[Row]:
        assert self._conn is not None
        pgconn = self._conn.pgconn
        self.sent = time.monotonic()
        if not self._prepares:
            pgconn.send_query_params(sql.encode(), values)
            return self._rows(await self._answer(pgconn))
        name = self._prepared.get(sql)
        if name is None:
            # By its text: behind a pooler that nobody told us of, another session may have prepared it.
            name = b"openqueue_" + hashlib.sha256(sql.encode()).hexdigest()[:16].encode()
            pgconn.send_prepare(name, sql.encode())
            self._rows(await self._answer(pgconn))
            self._prepared[sql] = name
        pgconn.send_query_prepared(name, values)
        return self._rows(await self._answer(pgconn))

    async def _open(self, timeout: float) -> None:
        try:
            conn = await self._connect(timeout)
            try:
                if not conn.autocommit:
                    await conn.set_autocommit(True)
                if conn.pgconn.parameter_status(b"client_encoding") != b"UTF8":
                    await conn.execute("select set_config('client_encoding', 'UTF8', false)")
                if self._prepares:  # Else the session is a pooler's, who lends it to others.
                    await conn.execute(self._settings)
            except BaseException:
                conn.pgconn.finish()
                raise
        except (TimeoutError, TypeError):
            raise
        except psycopg.Error as e:  # It was the session that the server refused, and not the call.
            raise ConnectionFailed(f"{self._name}: {e}") from e
        except Exception as e:  # Of a function that connects.
            raise ConnectionFailed(f"{self._name}: {type(e).__name__}: {e}") from e
        self._conn, self._fd, self._prepared = conn, conn.pgconn.socket, {}
        self._since = time.monotonic()
        conn.pgconn.nonblocking = 1
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    async def _answer(self, pgconn: Any) -> Any:
        """What was sent gave: the result, or the first error."""
        loop = asyncio.get_running_loop()
        while pgconn.flush():
            loop.add_writer(self._fd, self._go_on)  # Or something to read, which comes first.
            try:
                await self._wait()
            finally:
                if self._fd >= 0:
                    loop.remove_writer(self._fd)
        answer = None
        while True:
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    self._notified()
                    return answer
                if answer is None or answer.status != pq.ExecStatus.FATAL_ERROR:
                    answer = result
            await self._wait()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
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
            else:  # Whoever waits finds the server's last words, such as why it went away.
                self._forget()
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

    def _forget(self) -> None:
        """The socket is watched no more, before another one can have its number."""
        if self._fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
            self._fd = -1

    def drop(self) -> None:
        """Closes the connection, at once."""
        if self._conn is None:
            return
        conn, self._conn = self._conn, None
        self._forget()
        conn.pgconn.finish()
        self._go_on()
        if self._lost is not None:
            self._lost()
