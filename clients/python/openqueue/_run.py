"""Calls on what the caller has: a connection, a cursor (that is, its connection), or a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg

from ._calls import Call
from ._errors import translating

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


def run(db: DB, call: Call[T]) -> T:
    with translating():
        if isinstance(db, psycopg.Cursor):
            db = db.connection
        if not isinstance(db, psycopg.Connection):
            with db.connection() as conn:
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
            async with db.connection() as conn:
                return await _on_async(conn, call)
        return await _on_async(db, call)


async def _on_async(conn: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
    async with conn.cursor(row_factory=call.rows) as cursor:
        await cursor.execute(call.sql, call.params)
        return call.read(await cursor.fetchall() if cursor.description else [])
