"""Calls on what the caller has: a connection, a cursor (that is, its connection), or a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg

from ._calls import Call
from ._errors import ArgumentError, translating

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

T = TypeVar("T")


class Pool(Protocol):
    """A psycopg_pool.ConnectionPool, or anything that lends connections as it does."""

    def connection(self) -> AbstractContextManager[psycopg.Connection[Any]]: ...


class AsyncPool(Protocol):
    """A psycopg_pool.AsyncConnectionPool, or anything that lends connections as it does."""

    def connection(self) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]: ...


DB = psycopg.Connection[Any] | psycopg.Cursor[Any] | Pool
"""What calls take: a connection or cursor, whose transaction they join, or a pool, with one of their own."""
AsyncDB = psycopg.AsyncConnection[Any] | psycopg.AsyncCursor[Any] | AsyncPool
"""DB for asyncio."""


def _lent(db: object, wanted: str, enter: str) -> Any:
    """A pool's connection, as a context manager."""
    lend = getattr(db, "connection", None)
    lent = lend() if callable(lend) else None
    if not hasattr(lent, enter):  # Without its value, which may have a password.
        raise ArgumentError(f"db is a {type(db).__name__}, and no {wanted}")
    return lent


def run(db: DB, call: Call[T]) -> T:
    with translating():
        if isinstance(db, psycopg.Cursor):
            db = db.connection
        if not isinstance(db, psycopg.Connection):
            with _lent(db, "psycopg.Connection, Cursor or ConnectionPool", "__enter__") as conn:
                return _on(conn, call)
        return _on(db, call)


def _on(conn: psycopg.Connection[Any], call: Call[T]) -> T:
    with conn.cursor(row_factory=call.rows) as cursor:
        cursor.execute(call.sql, call.params)
        return call.read(cursor.fetchall() if cursor.description else [])


async def run_async(db: AsyncDB, call: Call[T]) -> T:
    with translating():
        if isinstance(db, psycopg.AsyncCursor):
            db = db.connection
        if not isinstance(db, psycopg.AsyncConnection):
            wanted = "psycopg.AsyncConnection, AsyncCursor or AsyncConnectionPool"
            async with _lent(db, wanted, "__aenter__") as conn:
                return await _on_async(conn, call)
        return await _on_async(db, call)


async def _on_async(conn: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
    async with conn.cursor(row_factory=call.rows) as cursor:
        await cursor.execute(call.sql, call.params)
        return call.read(await cursor.fetchall() if cursor.description else [])
