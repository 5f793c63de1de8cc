"""The helpers for tests, and what a failure's text says."""

from __future__ import annotations

import asyncio
import contextlib
import unittest
from typing import Any

import psycopg
from psycopg import errors as pg

from . import support
from .support import URL

import openqueue
from openqueue import aio, testing
from openqueue._errors import LIMIT, describe


class Helpers(support.Case):
    options = '{"max_retries": 0}'

    def test_drain(self) -> None:
        """Each end of a handler, its retries not waited for; and rolled back nothing was."""

        def handle(job: openqueue.Job[str]) -> Any:
            match job.payload:
                case "again":
                    raise openqueue.RetryAfter(60, "x")
                case "DEAD":
                    raise ValueError("y")
                case "snooze":
                    raise openqueue.Snooze(60)
                case "ack":
                    job.ack(conn, "in the transaction")
                case "lost":
                    openqueue.cancel(conn, job.id)
            return {"done": job.payload}

        with psycopg.connect(URL) as conn:
            words = ("fine", "again", "DEAD", "snooze", "ack", "lost")
            jobs = {
                word: openqueue.enqueue(conn, self.queue, word.upper(), max_retries=int(word == "again"))
                for word in words
            }
            self.assertEqual([j["payload"] for j in testing.jobs(conn, self.queue)], [w.upper() for w in words])
            done = testing.drain(
                conn,
                self.queue,
                handle,
                decode=lambda p: p if p == "DEAD" else p.lower(),
            )
            self.assertEqual(
                {d.job.id: d.state for d in done},
                dict(
                    zip(
                        jobs.values(),
                        ("completed", "scheduled", "dead", "released", "completed", "lost"),
                    )
                ),
            )
            self.assertIsInstance(done[2].error, ValueError)
            self.assertEqual(
                openqueue.result(conn, jobs["fine"]), ("completed", {"done": "fine"}, None)
            )
            self.assertEqual(
                openqueue.result(conn, jobs["ack"]), ("completed", "in the transaction", None)
            )
            conn.rollback()
        self.assertEqual(testing.jobs(self.db, self.queue), [])

    def test_a_statement_that_fails(self) -> None:
        """Its error is the job's; what the test and other jobs did in the transaction stays."""

        def handle(job: openqueue.Job[str]) -> None:
            conn.execute("insert into did values (%s)", [job.payload])
            if job.payload == "sql":
                conn.execute("select 1 / 0")
            if job.payload in ("ack", "swallow"):
                job.ack(conn)
            if job.payload == "swallow":
                with self.assertRaises(pg.DivisionByZero):
                    conn.execute("select 1 / 0")

        with psycopg.connect(URL) as conn:
            conn.execute("create temp table did (what text)")
            for word in ("plain", "sql", "ack", "swallow"):
                openqueue.enqueue(conn, self.queue, word)
            done = testing.drain(conn.cursor(), self.queue, handle)
            self.assertEqual([d.state for d in done], ["completed", "dead", "completed", "lost"])
            self.assertIsInstance(done[1].error, pg.DivisionByZero)
            did = [what for what, in conn.execute("select what from did order by what")]
            self.assertEqual(did, ["ack", "plain"])
            conn.rollback()

    def test_a_handler_that_ends_the_transaction(self) -> None:
        """The error is the handler's, though the transaction is gone."""

        def handle(job: openqueue.Job[str]) -> None:
            conn.commit()
            if job.payload == "fails":
                conn.execute("select 1 / 0")

        with psycopg.connect(URL) as conn:
            openqueue.enqueue(conn, self.queue, "fine")
            self.assertEqual([d.state for d in testing.drain(conn, self.queue, handle)], ["completed"])
            openqueue.enqueue(conn, self.queue, "fails")
            with self.assertRaises(pg.DivisionByZero):
                testing.drain(conn, self.queue, handle)
            conn.rollback()

    def test_exactly_once(self) -> None:
        """As the README says: on the test's connection, or on one that commits."""

        def handle(job: openqueue.Job[Any]) -> None:
            with connection() as conn:
                conn.execute("select 1")
                job.ack(conn)

        connection: Any
        with psycopg.connect(URL) as conn:
            connection = lambda: contextlib.nullcontext(conn)
            openqueue.enqueue(conn, self.queue)
            self.assertEqual([d.state for d in testing.drain(conn, self.queue, handle)], ["completed"])
            conn.rollback()
        connection = lambda: psycopg.connect(URL)
        openqueue.enqueue(self.db, self.queue)
        self.assertEqual([d.state for d in testing.drain(self.db, self.queue, handle)], ["completed"])

    def test_drain_has_an_end(self) -> None:
        openqueue.enqueue(self.db, self.queue)

        def handle(job: openqueue.Job[Any]) -> None:
            openqueue.enqueue(self.db, self.queue)

        with self.assertRaisesRegex(RuntimeError, "after 5 jobs"):
            testing.drain(self.db, self.queue, handle, max_jobs=5)

    def test_async(self) -> None:
        there: Any = None

        async def handle(job: aio.Job[Any]) -> Any:
            if job.payload == 1:
                await there.execute("select 1 / 0")
            return job.payload

        async def main() -> None:
            nonlocal there
            async with await psycopg.AsyncConnection.connect(URL) as conn:
                there = conn
                ids = await aio.enqueue_bulk(conn, self.queue, [0, 1])
                rows = await testing.jobs_async(conn, self.queue)
                self.assertEqual([row["job_id"] for row in rows], ids)
                done = await testing.drain_async(conn, self.queue, handle)
                self.assertEqual(
                    [(d.job.id, d.state) for d in done], [(ids[0], "completed"), (ids[1], "dead")]
                )
                with self.assertRaisesRegex(RuntimeError, "after 0 jobs"):
                    await aio.enqueue(conn, self.queue)
                    await testing.drain_async(conn, self.queue, handle, max_jobs=0)
                await conn.rollback()

        asyncio.run(main())


class Texts(unittest.TestCase):
    def described(self, error: BaseException) -> str:
        try:
            raise error
        except BaseException as e:
            return describe(e)

    def test_describe(self) -> None:
        class Silent(Exception):
            def __str__(self) -> str:
                raise ValueError

        self.assertRegex(self.described(KeyError("k")), r"(?s)^KeyError: 'k'\n\nTraceback .*KeyError: 'k'$")
        self.assertRegex(self.described(Silent()), r"Silent: \(no text: ValueError\)")
        self.assertEqual(self.described(openqueue.Failed("x\0y\ud800")), "x\ufffdy?")
        self.assertEqual(self.described(openqueue.Failed()), "Failed")
        self.assertEqual(self.described(openqueue.Discard(5)), "5")
        self.assertEqual(self.described(openqueue.RetryAfter(1)), "RetryAfter")

    def test_describe_is_bounded(self) -> None:
        """The head of the text stays, and the innermost frames."""

        def deep(n: int) -> None:
            if n == 0:
                raise ValueError("x" * 20_000)
            deep(n - 1)

        try:
            deep(200)
        except ValueError as e:
            text = describe(e)
        self.assertEqual(len(text), LIMIT)
        self.assertTrue(text.startswith("ValueError: xxx"))
