"""Producers, and what the server refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from . import support
from .support import URL

import openqueue
from openqueue import aio


@dataclass
class Address:
    street: str


@dataclass
class Person:
    name: str
    home: Address


class Calls(support.Case):
    def headers(self, job_id: int) -> Any:
        return self.ask("select headers from oq_get(%s)", job_id)

    def test_options(self) -> None:
        """Each option of the library is the server's of that name."""
        parent = openqueue.enqueue(self.db, self.queue)
        job = openqueue.enqueue(
            self.db,
            self.queue,
            {"é": ["'", None, 1.5]},
            priority=-3,
            run_at=datetime(2090, 1, 2, 3, tzinfo=timezone.utc),
            max_retries=0,
            ttl=timedelta(days=36500),
            retry={"kind": "fixed", "base": 1.5, "max": "1 hour", "jitter": 0},
            tags=["a", "b"],
            headers={"k": "v"},
            unique_key="u",
            unique_mode="reject",
            unique_for=60,
            group_key="g",
            depends_on=[parent],
            on_parent_failure="run",
        )
        got = openqueue.get(self.db, job)
        assert got is not None
        want = {
            "payload": {"é": ["'", None, 1.5]},
            "priority": -3,
            "run_at": datetime(2090, 1, 2, 3, tzinfo=timezone.utc),
            "max_retries": 0,
            "tags": ["a", "b"],
            "headers": {"k": "v"},
            "unique_key": "u",
            "group_key": "g",
            "state": "waiting",
        }
        self.assertEqual({k: got[k] for k in want}, want)
        self.assertTrue(self.ask("select oq_cancel(%s)", parent))
        self.until_state(job, "scheduled")  # on_parent_failure
        with self.assertRaises(openqueue.DuplicateJob):
            openqueue.enqueue(self.db, self.queue, unique_key="u", unique_mode="reject")
        self.assertEqual(self.state(openqueue.enqueue(self.db, self.queue, delay=3600)), "scheduled")

    def test_zero_retries_is_not_the_default(self) -> None:
        job = openqueue.enqueue(self.db, self.queue, max_retries=0)
        self.assertEqual(self.ask("select max_retries from oq_get(%s)", job), 0)

    def test_payloads(self) -> None:
        person = Person("Ada", Address("Ünter den Linden"))
        for payload, want in (
            (person, {"name": "Ada", "home": {"street": "Ünter den Linden"}}),
            ([person.home], [{"street": "Ünter den Linden"}]),
            (None, None),
            ("text", "text"),
            ({}, {}),
            (2**60 + 1, 2**60 + 1),
        ):
            with self.subTest(payload=payload):
                job = openqueue.enqueue(self.db, self.queue, payload)
                text = self.ask("select payload::text from oq_get(%s)", job)
                self.assertEqual(json.loads(text), want)
        unheard_of: list[Any] = []
        unheard_of.append(unheard_of)
        for bad in (float("nan"), {1, 2}, "\ud800", Person, unheard_of):
            with self.subTest(bad=bad), self.assertRaises(openqueue.ArgumentError):
                openqueue.enqueue(self.db, self.queue, bad)

    def test_refused_before_the_server(self) -> None:
        for error, options in (
            (TypeError, {"priorty": 1}),
            (openqueue.ArgumentError, {"run_at": datetime(2090, 1, 1)}),
            (openqueue.ArgumentError, {"tags": "ab"}),
            (openqueue.ArgumentError, {"delay": []}),
        ):
            with self.subTest(options=options), self.assertRaises(error):
                openqueue.enqueue(self.db, self.queue, **options)
        with self.assertRaisesRegex(openqueue.ArgumentError, r"jobs\[1\]"):
            openqueue.enqueue_many(
                self.db, [{"queue_name": self.queue}, {"queue_name": self.queue, "tags": "ab"}]
            )

    def test_no_connection(self) -> None:
        """What can't be called on says so, and what is wanted."""

        async def asynchronously() -> None:
            conn = await psycopg.AsyncConnection.connect(URL)
            async with AsyncConnectionPool(URL, min_size=1, open=False) as pool, conn:
                for db in (URL, None, conn, conn.cursor(), pool):
                    with self.subTest(db=db), self.assertRaisesRegex(openqueue.ArgumentError, "and no psycopg.Conn"):
                        openqueue.enqueue(db, self.queue)  # type: ignore[arg-type]
                with psycopg.connect(URL) as other:
                    for db in (URL, other, other.cursor()):
                        with self.subTest(db=db), self.assertRaisesRegex(openqueue.ArgumentError, "and no psycopg.Async"):
                            await aio.enqueue(db, self.queue)  # type: ignore[arg-type]

        asyncio.run(asynchronously())
        with self.assertRaises(openqueue.ArgumentError) as caught:
            openqueue.enqueue("postgres://u:secret@h/d", self.queue)  # type: ignore[arg-type]
        self.assertNotIn("secret", str(caught.exception))

    def test_errors(self) -> None:
        """By SQLSTATE, with the server's hint, and as psycopg's and Python's own kinds."""
        with self.assertRaises(openqueue.ArgumentError) as caught:
            openqueue.enqueue(self.db, self.queue, priority=40000)
        e = caught.exception
        self.assertIsInstance(e, ValueError)
        self.assertIsInstance(e, psycopg.DatabaseError)
        self.assertEqual((e.sqlstate, openqueue.sqlstate(e)), ("OQ001", "OQ001"))
        self.assertIn("40000", str(e))
        self.assertIn("-32768", e.hint or "")
        self.ask(
            "select oq_create_queue(%s, '{\"max_depth\": 1, \"overflow\": \"reject\"}')", self.queue
        )
        openqueue.enqueue(self.db, self.queue)
        with self.assertRaises(openqueue.QueueFull):
            openqueue.enqueue_bulk(self.db, self.queue, [1, 2])
        with self.assertRaises(pg.InvalidTextRepresentation) as other:
            openqueue.enqueue(self.db, self.queue, priority="x")
        self.assertEqual(openqueue.sqlstate(other.exception), "22P02")
        self.assertEqual(openqueue.sqlstate(ValueError()), "")

    def test_not_permitted(self) -> None:
        self.db.execute("drop role if exists nobody_here")
        self.db.execute("create role nobody_here")
        self.addCleanup(self.db.execute, "drop role nobody_here")
        self.db.execute("set role nobody_here")
        try:
            with self.assertRaises(pg.InsufficientPrivilege):
                openqueue.enqueue(self.db, self.queue)
        finally:
            self.db.execute("reset role")

    def test_in_the_callers_transaction(self) -> None:
        """On a connection or a cursor nothing is committed; a pool's connection commits."""
        with psycopg.connect(URL) as conn:
            job = openqueue.enqueue(conn, self.queue)
            with conn.cursor() as cursor:
                more = openqueue.enqueue(cursor, self.queue)
            self.assertEqual(self.ask("select count(*) from oq_jobs where queue_name = %s", self.queue), 0)
            conn.rollback()
        self.assertIsNone(self.state(job))
        self.assertIsNone(self.state(more))
        with ConnectionPool(URL, min_size=1) as pool:
            self.assertEqual(self.state(openqueue.enqueue(pool, self.queue)), "ready")
            with self.assertRaises(openqueue.ArgumentError):
                openqueue.enqueue(pool, self.queue, priority=40000)

    def test_whatever_the_connection_returns_by_default(self) -> None:
        from psycopg.rows import dict_row

        with psycopg.connect(URL, autocommit=True, row_factory=dict_row) as conn:
            job = openqueue.enqueue(conn, self.queue)
            self.assertEqual(self.state(job), "ready")
            self.assertTrue(openqueue.cancel(conn, job))

    def test_bulk_and_many(self) -> None:
        ids = openqueue.enqueue_bulk(self.db, self.queue, ({"n": n} for n in range(50)), priority=2)
        rows = self.db.execute(
            "select (payload->>'n')::int, priority from oq_jobs where queue_name = %s"
            " order by array_position(%s::bigint[], job_id)",
            [self.queue, ids],
        ).fetchall()
        self.assertEqual(rows, [(n, 2) for n in range(50)])
        made = openqueue.enqueue_many(
            self.db,
            [
                {"queue_name": self.queue, "ref": "a", "unique_key": "k"},
                {"queue_name": self.queue, "depends_on_refs": ["a"], "delay": timedelta(seconds=1)},
                {"queue_name": self.queue, "unique_key": "k", "payload": None},
            ],
        )
        self.assertEqual([m.inserted for m in made], [True, True, False])
        self.assertEqual(made[2].job_id, made[0].job_id)
        self.assertEqual(self.state(made[1].job_id), "waiting")
        self.assertEqual(openqueue.enqueue_bulk(self.db, self.queue, []), [])

    def test_cancel_update_get_result(self) -> None:
        job = openqueue.enqueue(self.db, self.queue)
        at = datetime(2090, 1, 1, tzinfo=timezone.utc)
        self.assertTrue(openqueue.update(self.db, job, run_at=at, priority=4, payload=[1]))
        got = openqueue.get(self.db, job)
        assert got is not None
        self.assertEqual((got["run_at"], got["priority"], got["payload"]), (at, 4, [1]))
        with self.assertRaises(TypeError):
            openqueue.update(self.db, job, queue_name="other")
        self.assertTrue(openqueue.cancel(self.db, job, "not needed"))
        self.assertFalse(openqueue.cancel(self.db, job))
        self.assertEqual(openqueue.result(self.db, job), ("cancelled", None, "not needed"))
        self.assertIsNone(openqueue.get(self.db, 0))
        self.assertIsNone(openqueue.result(self.db, 0))

    def test_trace(self) -> None:
        """The headers' own trace, else the process's function, else use_trace."""
        trace = openqueue.Trace("00-aa-bb-01", "x=1")
        with openqueue.use_trace(trace):
            self.assertEqual(openqueue.current_trace(), trace)
            job = openqueue.enqueue(self.db, self.queue, headers={"k": 1})
            self.assertEqual(
                self.headers(job), {"k": 1, "traceparent": "00-aa-bb-01", "tracestate": "x=1"}
            )
            made = openqueue.enqueue_many(self.db, [{"queue_name": self.queue}])
            self.assertEqual(self.headers(made[0].job_id)["traceparent"], "00-aa-bb-01")
            self.assertIsNone(self.headers(openqueue.enqueue_bulk(self.db, self.queue, [1])[0]))
            own = openqueue.enqueue(self.db, self.queue, headers={"traceparent": "00-own"})
            self.assertEqual(self.headers(own), {"traceparent": "00-own"})
            openqueue.trace_with(lambda carrier: carrier.update(traceparent="00-process"))
            self.addCleanup(openqueue.trace_with, None)
            job = openqueue.enqueue(self.db, self.queue, headers={"k": 1})
            self.assertEqual(self.headers(job), {"k": 1, "traceparent": "00-process"})
            openqueue.trace_with(lambda carrier: None)
            job = openqueue.enqueue(self.db, self.queue)
            self.assertEqual(self.headers(job)["traceparent"], "00-aa-bb-01")
        self.assertIsNone(openqueue.current_trace())
        self.assertIsNone(self.headers(openqueue.enqueue(self.db, self.queue)))


class AsyncCalls(support.Case):
    def run_async(self, do: Callable[[psycopg.AsyncConnection[Any]], Any]) -> None:
        async def main() -> None:
            async with await psycopg.AsyncConnection.connect(URL, autocommit=True) as conn:
                await do(conn)

        asyncio.run(main())

    def test_calls(self) -> None:
        async def do(conn: psycopg.AsyncConnection[Any]) -> None:
            job = await aio.enqueue(conn, self.queue, {"n": 1}, priority=2)
            got = await aio.get(conn, job)
            assert got is not None
            self.assertEqual((got["payload"], got["priority"]), ({"n": 1}, 2))
            ids = await aio.enqueue_bulk(conn, self.queue, [1, 2], max_retries=0)
            made = await aio.enqueue_many(conn, [{"queue_name": self.queue}])
            self.assertEqual(len({job, *ids, made[0].job_id}), 4)
            self.assertTrue(await aio.update(conn, job, priority=5))
            self.assertTrue(await aio.cancel(conn, job, "why"))
            self.assertEqual(await aio.result(conn, job), ("cancelled", None, "why"))
            with self.assertRaises(openqueue.ArgumentError):
                await aio.enqueue(conn, self.queue, priority=40000)

        self.run_async(do)

    def test_in_the_callers_transaction(self) -> None:
        async def do(_: psycopg.AsyncConnection[Any]) -> None:
            async with await psycopg.AsyncConnection.connect(URL) as conn:
                job = await aio.enqueue(conn, self.queue)
                async with conn.cursor() as cursor:
                    await aio.enqueue(cursor, self.queue)
                await conn.rollback()
                self.assertIsNone(self.state(job))
            async with AsyncConnectionPool(URL, min_size=1, open=False) as pool:
                self.assertEqual(self.state(await aio.enqueue(pool, self.queue)), "ready")

        self.run_async(do)
