"""Both workers: what a handler's end becomes, and how a worker itself ends."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest import mock

import psycopg
from psycopg import errors as pg

from . import support
from .support import PATIENCE, URL

import openqueue
from openqueue import _worker, aio, testing
from openqueue._session import ConnectionFailed


@dataclass
class Task:
    do: str
    n: int = 0

    @classmethod
    def read(cls, value: Any) -> Task:
        return cls(**value)


class Both:
    """What holds for both workers."""

    # Of support.Case and of its Threads or Tasks.
    db: Any
    queue: Any
    ask: Any
    state: Any
    until: Any
    until_state: Any
    start: Any
    worker: Any
    together: Any
    either: Any

    options = '{"max_retries": 1, "retry": {"kind": "fixed", "base": "1 hour", "jitter": 0}}'

    def enqueue(self: Any, payload: Any = None, **options: Any) -> int:
        return openqueue.enqueue(self.db, self.queue, payload, **options)

    def test_outcomes(self: Any) -> None:
        """What a handler returns or raises is what happens, what observe sees and what is logged."""
        want: dict[str, tuple[str, str, Any]] = {  # what to do: state in the database, observed, error
            "return": ("completed", "acked", None),
            "fail": ("scheduled", "scheduled", ValueError),
            "expected": ("scheduled", "scheduled", openqueue.Failed),
            "exit": ("scheduled", "scheduled", SystemExit),
            "discard": ("dead", "dead", openqueue.Discard),
            "discard for": ("dead", "dead", openqueue.Discard),
            "retry": ("scheduled", "scheduled", openqueue.RetryAfter),
            "snooze": ("scheduled", "released", openqueue.Snooze),
            "no result": ("scheduled", "scheduled", openqueue.ArgumentError),
            "no jsonb": ("scheduled", "scheduled", psycopg.DataError),
            "no pause": ("scheduled", "scheduled", openqueue.RetryAfter),
            "no snooze": ("scheduled", "scheduled", openqueue.Snooze),
            "unreadable": ("scheduled", "scheduled", TypeError),
        }

        def handle(job: Any) -> Any:
            match job.payload.do:
                case "return":
                    return {"n": job.payload.n}
                case "fail":
                    raise ValueError("out of luck")
                case "expected":
                    raise openqueue.Failed("no luck")
                case "exit":
                    sys.exit(3)
                case "discard":
                    raise openqueue.Discard("never again")
                case "discard for":
                    raise openqueue.Discard(KeyError("k"))
                case "retry":
                    raise openqueue.RetryAfter(timedelta(hours=2), "busy")
                case "snooze":
                    raise openqueue.Snooze("3 hours")
                case "no result":
                    return {1, 2}
                case "no jsonb":
                    return "a\0b"
                case "no pause":
                    raise openqueue.RetryAfter("a while", "busy")
                case "no snooze":
                    raise openqueue.Snooze("a while")

        jobs = {do: self.enqueue({"word": 1} if do == "unreadable" else {"do": do, "n": 5}) for do in want}
        outcomes: dict[int, Any] = {}
        logger = logging.getLogger(self.queue)
        with self.assertLogs(logger, logging.DEBUG) as logs:
            running = self.start(
                handle,
                decode=Task.read,
                concurrency=3,
                batch=20,
                observe=lambda o: outcomes.update({o.job.id: o}),
                logger=logger,
            )
            self.until("all are observed", lambda: len(outcomes) == len(jobs))
            self.assertIsNone(running.end())
        levels = {
            r.job_id: r.levelname for r in logs.records if hasattr(r, "job_id")
        }
        for do, (state, observed, error) in want.items():
            with self.subTest(do=do):
                job = jobs[do]
                self.assertEqual(self.state(job), state)
                self.assertEqual(outcomes[job].state, observed)
                if error is None:
                    self.assertIsNone(outcomes[job].error)
                else:
                    self.assertIsInstance(outcomes[job].error, error)
                self.assertEqual(
                    levels[job],
                    {"acked": "DEBUG", "released": "DEBUG", "dead": "ERROR"}.get(observed, "WARNING"),
                )
        self.assertEqual(self.ask("select result from oq_get(%s)", jobs["return"]), {"n": 5})

        def error_of(do: str) -> str:
            return str(self.ask("select error from oq_get(%s)", jobs[do]))

        self.assertRegex(error_of("fail"), r"(?s)^ValueError: out of luck\n\nTraceback.*test_worker\.py")
        self.assertEqual(error_of("expected"), "no luck")
        self.assertRegex(error_of("exit"), "^SystemExit: 3\n")
        self.assertEqual(error_of("discard"), "never again")
        self.assertRegex(error_of("discard for"), "^KeyError: 'k'")
        self.assertEqual(error_of("retry"), "busy")
        self.assertRegex(error_of("no result"), "^ArgumentError: no JSON value")
        self.assertRegex(error_of("no jsonb"), "unsupported Unicode escape sequence")
        self.assertRegex(error_of("no pause"), "invalid input syntax for type interval")
        self.assertRegex(error_of("no snooze"), "invalid input syntax for type interval")
        self.assertRegex(error_of("unreadable"), "^TypeError: .*word")

        def pause(do: str) -> Any:
            return self.ask("select extract(epoch from run_at - now())::int from oq_get(%s)", jobs[do])

        self.assertAlmostEqual(pause("retry"), 7200, delta=60)
        self.assertAlmostEqual(pause("snooze"), 10800, delta=60)
        self.assertEqual(self.ask("select attempt from oq_get(%s)", jobs["snooze"]), 0)

    def test_expired(self: Any) -> None:
        """An attempt that fails after the job's time to live has no next one."""
        states: list[str] = []

        async def handle(job: Any) -> None:
            await asyncio.sleep(1.1)
            raise openqueue.Failed("x")

        job = self.enqueue(ttl=1)
        running = self.start(self.either(handle), observe=lambda o: states.append(o.state))
        self.until_state(job, "expired")
        self.assertIsNone(running.end())
        self.assertEqual(states, ["expired"])

    def test_the_job(self: Any) -> None:
        """What a handler can read of its job."""
        seen: list[Any] = []

        def handle(job: Any) -> None:
            seen.append(
                (job.id, job.attempt, job.queue, job.priority, job.max_retries, job.group_key, job.headers)
            )
            seen.append((job.payload, json.loads(job.payload_text), repr(job), job.token, job.created_at))

        began = self.ask("select now()")
        job = self.enqueue({"é": 1}, priority=3, max_retries=7, group_key="ü g", headers={"h": [1]})
        plain = self.enqueue()
        running = self.start(handle, concurrency=1)
        self.until_state(job, "completed")
        self.until_state(plain, "completed")
        running.end()
        self.assertEqual(seen[0], (job, 1, self.queue, 3, 7, "ü g", {"h": [1]}))
        payload, text, said, token, created = seen[1]
        self.assertEqual((payload, text), ({"é": 1}, {"é": 1}))
        self.assertEqual(said, f"<job {job} of {self.queue}, attempt 1>")
        self.assertGreater(token, 0)
        self.assertLess(abs(created - began), timedelta(minutes=1))
        self.assertEqual(seen[2][3:], (0, 1, None, {}))

    def test_middleware(self: Any) -> None:
        """The first is the outermost; what they return is the result."""
        threads = isinstance(self, support.Threads)

        def wrap(name: str) -> Any:
            def middleware(handler: Any) -> Any:
                def run(job: Any) -> Any:
                    return [name, handler(job)]

                async def run_async(job: Any) -> Any:
                    return [name, await handler(job)]

                return run if threads else run_async

            return middleware

        job = self.enqueue()
        running = self.start(lambda job: "x", middleware=[wrap("a"), wrap("b")])
        self.until_state(job, "completed")
        running.end()
        self.assertEqual(self.ask("select result from oq_get(%s)", job), ["a", ["b", "x"]])

    def test_timeout(self: Any) -> None:
        """A handler that takes too long is told to end, and has failed."""
        threads = isinstance(self, support.Threads)
        timeout = openqueue.timeout if threads else aio.timeout
        ends: list[Any] = []
        told: list[Any] = []

        def handle(job: Any) -> Any:
            if not threads:
                return handle_async(job)
            if job.payload == "checks":
                while not job.stopped:
                    time.sleep(0.01)
                job.check()
            job.sleep({"short": 0.01, "long": 60}.get(job.payload))

        async def handle_async(job: Any) -> None:
            try:
                await asyncio.sleep(0.01 if job.payload == "short" else 60)
            except asyncio.CancelledError:
                told.append(job.why)
                raise

        jobs = {word: self.enqueue(word) for word in ("short", "long", "ever", "checks")}
        running = self.start(
            handle, middleware=[timeout(60), timeout(0.2), timeout(30)], observe=lambda end: ends.append(end)
        )
        self.until("all ended", lambda: len(ends) == 4)
        self.assertIsNone(running.end())
        self.assertEqual(
            {word: self.state(job) for word, job in jobs.items()},
            {"short": "completed", "long": "scheduled", "ever": "scheduled", "checks": "scheduled"},
        )
        for end in ends:
            with self.subTest(end=end):
                late = end.state != "acked"
                self.assertEqual(end.job.why, "timeout" if late else None)
                self.assertIsInstance(end.error, (openqueue.Stopped if threads else TimeoutError) if late else type(None))
                self.assertLess(end.job.seconds, 20)
        self.assertEqual(told, [] if threads else ["timeout"] * 3)
        for bad in (0, -1, None, "5"):
            with self.subTest(bad=bad), self.assertRaises(openqueue.ArgumentError):
                timeout(bad)

    def test_trace(self: Any) -> None:
        """What a handler enqueues goes on with its job's trace."""
        second: list[int] = []

        def handle(job: Any) -> None:
            with psycopg.connect(URL, autocommit=True) as conn:
                second.append(openqueue.enqueue(conn, f"{self.queue}.2"))

        trace = openqueue.Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b")
        with openqueue.use_trace(trace):
            self.until_state_of_one(handle)
        self.assertEqual(
            self.ask("select headers from oq_get(%s)", second[0]),
            {"traceparent": trace.parent, "tracestate": "a=b"},
        )

    def until_state_of_one(self: Any, handle: Any) -> None:
        job = self.enqueue()
        running = self.start(handle)
        self.until_state(job, "completed")
        self.assertIsNone(running.end())

    def test_first_lease_refused(self: Any) -> None:
        """A worker that may not work says so, and does not try for ever."""
        self.db.execute("drop role if exists no_worker")
        self.db.execute("create role no_worker login")
        self.addCleanup(self.db.execute, "drop role no_worker")
        url = psycopg.conninfo.make_conninfo(URL, user="no_worker")
        self.assertIsInstance(self.start(lambda job: None, db=url).wait(), pg.InsufficientPrivilege)

    def test_no_session(self: Any) -> None:
        """A server that would have no session ends a worker that never had one, and no other."""
        for words in ({"dbname": "no_database"}, {"user": "no role"}):
            with self.subTest(words=words):
                error = self.start(lambda job: None, db=psycopg.conninfo.make_conninfo(URL, **words)).wait()
                self.assertIsInstance(error, psycopg.OperationalError)
                self.assertRegex(str(error), 'FATAL: .*"no.*" does not exist')
        allowed = True

        async def connect() -> psycopg.AsyncConnection[Any]:
            words = {} if allowed else {"user": "no_role"}
            return await psycopg.AsyncConnection.connect(psycopg.conninfo.make_conninfo(URL, **words))

        states: list[str] = []
        failed = threading.Event()
        logger = logging.getLogger(self.queue)
        logger.addFilter(lambda r: failed.set() or True if "no_role" in r.getMessage() else True)
        logger.propagate = False

        def handle(job: Any) -> None:
            nonlocal allowed
            allowed = False
            running.worker._lane._conn.pgconn.finish()

        running = self.start(handle, db=connect, logger=logger, observe=lambda o: states.append(o.state))
        job = self.enqueue()
        self.assertTrue(failed.wait(PATIENCE))
        allowed = True
        self.until_state(job, "completed")
        self.assertIsNone(running.end())
        self.assertEqual(states, ["acked"])

    def test_a_pooler_that_nobody_told_of(self: Any) -> None:
        """Prepared statements of another session are no failure of the job, and the log names the option."""
        states: list[str] = []

        def handle(job: Any) -> None:
            running.worker._lane._prepared.update(dict.fromkeys((_worker._NEXT, _worker._ACK), b"nobodys"))

        job = self.enqueue()
        with self.assertLogs("openqueue", logging.WARNING) as logs:
            running = self.start(handle, concurrency=1, observe=lambda o: states.append(o.state))
            self.until_state(job, "completed")
            self.assertIsNone(running.end())
        self.assertEqual(states, ["acked"])
        self.assertRegex(logs.output[0], 'prepared statement "nobodys" does not exist .*set pooler')

    def test_stopped_while_it_connects(self: Any) -> None:
        """A server that is mute keeps no worker that holds nothing."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            host, port = server.getsockname()
            running = self.start(lambda job: None, db=f"host={host} port={port} dbname=x")
            with server.accept()[0]:
                began = time.monotonic()
                self.assertIsNone(running.end())
                self.assertLess(time.monotonic() - began, PATIENCE / 3)

    def test_a_worker_that_can_not_connect(self: Any) -> None:
        """Whatever a function that connects raises, it is tried again; one that is none ends the worker."""
        tries = 0

        async def connect() -> psycopg.AsyncConnection[Any]:
            nonlocal tries
            tries += 1
            if tries <= 2:
                raise KeyError("no password yet")
            return await psycopg.AsyncConnection.connect(URL, autocommit=True)

        job = self.enqueue()
        running = self.start(lambda job: None, db=connect)
        self.until_state(job, "completed")
        self.assertIsNone(running.end())
        self.assertGreater(tries, 2)
        self.assertIsInstance(self.start(lambda job: None, db=lambda: None).wait(), TypeError)

    def test_a_standby(self: Any) -> None:
        """A connection that leads to a standby, as after a failover, is given up for another."""
        tries = 0

        async def connect() -> psycopg.AsyncConnection[Any]:
            nonlocal tries
            tries += 1
            options = "-c default_transaction_read_only=on" if tries <= 3 else ""
            return await psycopg.AsyncConnection.connect(URL, autocommit=True, options=options)

        job = self.enqueue()
        running = self.start(lambda job: None, db=connect)
        self.until_state(job, "completed")
        self.assertIsNone(running.end())
        self.assertGreater(tries, 3)

    def test_a_stricter_default_isolation(self: Any) -> None:
        """Where the role's default is SERIALIZABLE, one lost lease takes no other with it."""
        tokens: dict[str, int] = {}
        over = threading.Event()
        self.addCleanup(over.set)

        def handle(job: Any) -> Any:
            tokens[job.payload] = job.token
            if isinstance(self, support.Tasks):
                return wait()
            while not over.wait(0.01):
                job.check()

        async def wait() -> None:
            while not over.is_set():
                await asyncio.sleep(0.01)

        outcomes: list[Any] = []
        lost, kept = self.enqueue("lost"), self.enqueue("kept")
        url = psycopg.conninfo.make_conninfo(URL, options="-c default_transaction_isolation=serializable")
        running = self.start(handle, db=url, concurrency=2, lease_seconds=2, observe=outcomes.append)
        self.until("both run", lambda: len(tokens) == 2)
        self.ask("select oq_release(%s, %s, '1 hour')", lost, tokens["lost"])
        begun = time.monotonic()
        # Whose lease ended would be taken from him at once.
        self.until("two leases", lambda: self.ask("select oq_reap()") >= 0 and time.monotonic() > begun + 4)
        over.set()
        self.until_state(kept, "completed")
        self.assertIsNone(running.end())
        self.assertEqual(self.ask("select concat_ws(' ', attempt, lost_leases) from oq_get(%s)", kept), "1 0")
        self.assertIn("lost", [o.state for o in outcomes])

    def test_leases_of_another_length(self: Any) -> None:
        """The queue's lease_seconds change while jobs are held: each is kept by what its own lease lasts."""
        over = threading.Event()
        self.addCleanup(over.set)
        begun: list[int] = []

        def handle(job: Any) -> Any:
            begun.append(job.id)
            if isinstance(self, support.Tasks):
                return wait(job)
            while not over.wait(0.1):
                job.progress(1)

        async def wait(job: Any) -> None:
            while not over.is_set():
                await job.progress(1)
                await asyncio.sleep(0.1)

        running = self.start(handle, concurrency=2)
        jobs: list[int] = []
        for seconds in (60, 1):
            self.ask("select oq_create_queue(%s, %s)", self.queue, json.dumps({"lease_seconds": seconds}))
            jobs.append(self.enqueue())
            self.until("it is begun", lambda: len(begun) == len(jobs))
            time.sleep(1.5)  # Longer than the second lease.
        at = time.monotonic()
        # Whose lease ended would be taken from him at once.
        self.until("a while", lambda: self.ask("select oq_reap()") >= 0 and time.monotonic() > at + 2)
        over.set()
        for job in jobs:
            self.until_state(job, "completed")
            self.assertEqual(self.ask("select concat_ws(' ', attempt, lost_leases) from oq_get(%s)", job), "1 0")
        self.assertIsNone(running.end())

    def test_a_lease_that_ended_is_not_begun(self: Any) -> None:
        """As of a job that waited here while the process stood still."""
        begun: list[Any] = []
        outcomes: list[Any] = []
        started = threading.Event()
        first = self.enqueue("first")
        self.enqueue("late")
        last = self.enqueue("last")

        def handle(job: Any) -> None:
            begun.append(job.payload)
            assert started.wait(PATIENCE)
            for other in list(running.worker._held.values()):
                if job.id == first and other.id not in (first, last):
                    other._since -= 100

        running = self.start(handle, concurrency=1, batch=3, observe=outcomes.append)
        started.set()
        self.until("all are observed", lambda: len(outcomes) == 3)
        self.assertIsNone(running.end())
        self.assertEqual(begun, ["first", "last"])
        self.assertEqual(sorted(o.state for o in outcomes), ["acked", "acked", "lost"])

    def test_an_ack_after_the_end_of_the_lease(self: Any) -> None:
        """It is said to be lost where somebody took the job, and done where nobody did."""
        outcomes: dict[str, str] = {}

        async def handle(job: Any) -> None:
            if job.payload == "taken":
                self.ask("select oq_release(%s, %s, '1 hour')", job.id, job.token)
            if job.payload != "plain":
                job._since -= 1000

        jobs = {word: self.enqueue(word) for word in ("taken", "late", "plain")}
        running = self.start(
            self.either(handle),
            concurrency=3,
            lease_seconds=600,
            observe=lambda o: outcomes.update({o.job.payload: o.state}),
        )
        self.until("all are observed", lambda: len(outcomes) == 3)
        self.assertIsNone(running.end())
        self.assertEqual(outcomes, {"taken": "lost", "late": "acked", "plain": "acked"})
        self.assertEqual(
            {word: self.state(job) for word, job in jobs.items()},
            {"taken": "scheduled", "late": "completed", "plain": "completed"},
        )

    def test_an_ack_over_another_connection(self: Any) -> None:
        """A lease is not waited for: a server that crashed, or took over, may not know it, and is asked."""
        url = psycopg.conninfo.make_conninfo(URL, application_name=self.queue)
        outcomes: dict[str, str] = {}
        begun: dict[str, int] = {}
        over = threading.Event()
        self.addCleanup(over.set)

        async def handle(job: Any) -> None:
            begun[job.payload] = job.token
            while not over.is_set():
                await asyncio.sleep(0.005)

        jobs = {word: self.enqueue(word) for word in ("forgotten", "kept")}
        running = self.start(
            self.either(handle),
            db=url,
            concurrency=3,
            lease_seconds=600,
            observe=lambda o: outcomes.update({o.job.payload: o.state}),
        )
        self.until("both run", lambda: len(begun) == 2)
        self.ask("select oq_release(%s, %s, '1 hour')", jobs["forgotten"], begun["forgotten"])
        self.ask(
            "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where application_name = %s",
            self.queue,
        )
        over.set()
        self.until("both are observed", lambda: len(outcomes) == 2)
        self.assertIsNone(running.end())
        self.assertEqual(outcomes, {"forgotten": "lost", "kept": "acked"})

    def test_the_answer_of_an_ack_is_lost(self: Any) -> None:
        """The server has it: it is not found again by the next try, and it is not lost."""
        states: list[str] = []
        begun, over = threading.Event(), threading.Event()
        self.addCleanup(over.set)

        async def handle(job: Any) -> None:
            begun.set()
            while not over.is_set():
                await asyncio.sleep(0.005)

        job = self.enqueue()
        running = self.start(self.either(handle), observe=lambda o: states.append(o.state))
        self.assertTrue(begun.wait(PATIENCE))
        call, calls = running.worker._out.call, 0

        async def lossy(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            answer = await call(*args)
            if calls == 1:
                raise ConnectionFailed("the connection was lost")
            return answer

        running.worker.stop()
        self.until("it drains", lambda: running.worker._closed)
        running.worker._out.call = lossy
        over.set()
        self.assertIsNone(running.wait())
        self.assertEqual((calls, states, self.state(job)), (2, ["acked"], "completed"))

    def test_calls_that_were_given_up(self: Any) -> None:
        """What waited for a lock beyond the time-out leases nothing for nobody when it gets it."""
        url = psycopg.conninfo.make_conninfo(URL, application_name=self.queue)
        jobs = [self.enqueue(n) for n in range(6)]
        failed = threading.Event()
        logger = logging.getLogger(self.queue)
        logger.addFilter(lambda r: failed.set() or True if "a call failed" in r.getMessage() else True)
        logger.propagate = False

        async def connect() -> psycopg.AsyncConnection[Any]:
            await asyncio.sleep(0.4)  # As where the server is busy, or far away.
            return await psycopg.AsyncConnection.connect(url, autocommit=True)

        with psycopg.connect(URL) as conn:
            conn.execute("lock table oq.leased in exclusive mode")
            running = self.start(
                lambda job: None, db=connect, concurrency=2, lease_seconds=600, timeout=1, logger=logger
            )
            for n in range(3):
                self.assertTrue(failed.wait(PATIENCE))
                failed.clear()
                if n < 2:
                    waiting = self.ask(
                        "select count(*) from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'",
                        self.queue,
                    )
                    self.assertLessEqual(waiting, 2)
            conn.commit()
        for job in jobs:
            self.until_state(job, "completed")
        self.assertIsNone(running.end())

    def test_the_open_transaction_of_a_cancel(self: Any) -> None:
        """It holds no heartbeat of the other jobs up, however many it has cancelled, behind a pooler neither."""
        for pooler in (False, True):
            with self.subTest(pooler=pooler):
                self.open_transaction_of_a_cancel(pooler)

    def open_transaction_of_a_cancel(self: Any, pooler: bool) -> None:
        begun: list[int] = []
        over = threading.Event()
        self.addCleanup(over.set)

        def handle(job: Any) -> Any:
            begun.append(job.id)
            if isinstance(self, support.Tasks):
                return wait(job)
            while not over.wait(0.5):
                job.progress(1)

        async def wait(job: Any) -> None:
            while not over.is_set():
                await job.progress(1)
                await asyncio.sleep(0.5)

        outcomes: list[Any] = []
        *cancelled, one, two = [self.enqueue(n) for n in range(27)]
        running = self.start(
            handle, pooler=pooler, concurrency=27, lease_seconds=4, observe=outcomes.append
        )
        self.until("all run", lambda: len(begun) == 27)
        with psycopg.connect(URL) as conn:
            for job in cancelled:
                self.assertTrue(openqueue.cancel(conn, job))
            at = time.monotonic()
            # Whose lease ended would be taken from him at once.
            self.until("a lease and a half", lambda: self.ask("select oq_reap()") >= 0 and time.monotonic() > at + 6)
            conn.commit()
        self.until("they are told", lambda: len(outcomes) == len(cancelled))
        over.set()
        for job in one, two:
            self.until_state(job, "completed")
            self.assertEqual(self.ask("select concat_ws(' ', attempt, lost_leases) from oq_get(%s)", job), "1 0")
        self.assertIsNone(running.end())

    def waits(self: Any, over: threading.Event, begun: list[Any]) -> Any:
        """A handler that runs until then."""

        async def handle(job: Any) -> None:
            begun.append(job.payload)
            while not over.is_set():
                await asyncio.sleep(0.005)
            if job.payload == "fails":
                raise openqueue.Failed("no luck")

        return self.either(handle)

    def test_a_job_that_is_held(self: Any) -> None:
        """A transaction that is open and has cancelled a job, which has ended since, keeps no other waiting."""
        for pooler, end, commit in [
            (False, "done", False),
            (True, "done", True),
            (False, "fails", False),
            (True, "fails", True),
        ]:
            with self.subTest(pooler=pooler, end=end, commit=commit), psycopg.connect(URL) as conn:
                over = threading.Event()
                self.addCleanup(over.set)
                begun: list[Any] = []
                outcomes: dict[int, list[str]] = {}
                job, *others = self.enqueue(end), self.enqueue("done"), self.enqueue("fails")
                running = self.start(
                    self.waits(over, begun),
                    pooler=pooler,
                    concurrency=3,
                    lease_seconds=9,
                    observe=lambda o: outcomes.setdefault(o.job.id, []).append(o.state),
                )
                self.until("all run", lambda: len(begun) == 3)
                self.assertTrue(openqueue.cancel(conn, job))
                began = time.monotonic()
                over.set()
                others += [self.enqueue("done"), self.enqueue("fails")]
                self.until("the others have ended", lambda: len(outcomes) == 4)
                self.assertLess(time.monotonic() - began, 10)
                # A lease with acks would not say which of them were lost.
                self.until(
                    "its end is tried by itself",
                    lambda: self.ask(
                        "select count(*) from pg_stat_activity where datname = current_database()"
                        " and wait_event_type = 'Lock' and query ~ 'oq_ack_many|oq_nack'"
                    ),
                )
                self.assertNotIn(job, outcomes)
                conn.commit() if commit else conn.rollback()
                self.until("it is told", lambda: len(outcomes) == 5)
                states = {"done": "completed", "fails": "scheduled"}
                told = {"done": "acked", "fails": "scheduled"}
                self.assertEqual(outcomes.pop(job), ["lost" if commit else told[end]])
                self.assertEqual([outcomes[n] for n in others], [["acked"], ["scheduled"]] * 2)
                self.assertEqual(self.state(job), "cancelled" if commit else states[end])
                for n in [job, *others]:
                    self.assertEqual(self.ask("select attempt + lost_leases from oq_get(%s)", n), 1)
                self.assertIsNone(running.end())

    def test_heartbeats_of_a_job_that_has_ended(self: Any) -> None:
        """A job whose end the server does not take for a while stays leased."""
        over = threading.Event()
        self.addCleanup(over.set)
        begun: list[Any] = []
        running = self.start(self.waits(over, begun), lease_seconds=2)
        done, fails = self.enqueue("done"), self.enqueue("fails")
        self.until("both run", lambda: len(begun) == 2)
        with psycopg.connect(URL) as conn:
            conn.execute("lock table oq.finished, oq.attempt in exclusive mode")
            over.set()
            self.until(
                "their leases are extended",
                lambda: self.ask(
                    "select bool_and(lease_expires_at > created_at + interval '5 s') from oq_jobs where queue_name = %s",
                    self.queue,
                ),
            )
        self.until_state(done, "completed")
        self.until_state(fails, "scheduled")
        for job in done, fails:
            self.assertEqual(self.ask("select attempt + lost_leases from oq_get(%s)", job), 1)
        self.assertIsNone(running.end())

    def test_drain_with_a_mute_server(self: Any) -> None:
        """All calls of the end together take no longer than one may, whether handlers end by themselves or not."""
        for drain in (0.5, PATIENCE):
            with self.subTest(drain=drain), psycopg.connect(URL) as conn:
                over = threading.Event()
                self.addCleanup(over.set)
                begun: list[Any] = []
                outcomes: list[str] = []
                for end in ["done", "fails", *range(8)]:
                    self.enqueue(end)
                running = self.start(
                    self.waits(over, begun),
                    concurrency=2,
                    batch=10,
                    drain=drain,
                    timeout=1,
                    observe=lambda o: outcomes.append(o.state),
                )
                self.until("two run", lambda: len(begun) == 2)
                conn.execute("lock table oq.leased in access exclusive mode")
                began = time.monotonic()
                running.worker.stop()
                threading.Timer(0 if drain > 1 else 1, over.set).start()
                self.assertIsNone(running.wait())
                self.assertLess(time.monotonic() - began, 10)
                self.assertEqual(outcomes, ["lost"] * 10)
                conn.rollback()
                self.ask("select count(oq_cancel(job_id)) from oq_jobs where queue_name = %s", self.queue)

    def test_drain_with_many_jobs_that_are_held(self: Any) -> None:
        """They take no time from the other ends."""
        over = threading.Event()
        self.addCleanup(over.set)
        begun: list[Any] = []
        outcomes: dict[int, str] = {}
        *held, one, two = [self.enqueue(n) for n in [*range(26), "fails"]]
        running = self.start(
            self.waits(over, begun), concurrency=27, timeout=4, observe=lambda o: outcomes.update({o.job.id: o.state})
        )
        self.until("all run", lambda: len(begun) == 27)
        with psycopg.connect(URL) as conn:
            for job in held:
                self.assertTrue(openqueue.cancel(conn, job))
            over.set()
            self.assertIsNone(running.end())
            conn.rollback()
        self.assertEqual([outcomes[n] for n in (one, two)], ["acked", "scheduled"])
        self.assertEqual([outcomes[n] for n in held], ["lost"] * 25)
        self.ask("select count(oq_cancel(job_id)) from oq_jobs where queue_name = %s", self.queue)

    def test_a_lock_timeout_of_the_role(self: Any) -> None:
        """A row that is locked for a while is no failure of its job, and keeps no other waiting."""
        url = psycopg.conninfo.make_conninfo(URL, options="-c lock_timeout=200ms")
        for pooler in (False, True):
            for end in ("done", "fails"):
                with self.subTest(pooler=pooler, end=end), psycopg.connect(URL) as conn:
                    locked = threading.Event()
                    runs: list[int] = []

                    def handle(job: Any) -> None:
                        runs.append(job.id)
                        if job.payload == "other":
                            return
                        openqueue.cancel(conn, job.id)
                        locked.set()
                        if job.payload == "fails":
                            raise openqueue.Failed("x")

                    job = self.enqueue(end)
                    outcomes: list[Any] = []
                    running = self.start(handle, db=url, pooler=pooler, poll=0.2, observe=outcomes.append)
                    self.assertTrue(locked.wait(PATIENCE))
                    time.sleep(0.7)
                    self.assertEqual(outcomes, [])
                    conn.rollback()
                    self.until_state(job, "completed" if end == "done" else "scheduled")
                    self.until_state(self.enqueue("other"), "completed")
                    self.assertIsNone(running.end())
                    self.assertEqual(len(runs), 2)
                    self.assertEqual(outcomes[0].state, "acked" if end == "done" else "scheduled")

    def test_others_do_not_wait_for_a_locked_row(self: Any) -> None:
        """Where the server refuses to wait for a lock, what is done beside it is reported."""
        url = psycopg.conninfo.make_conninfo(URL, options="-c lock_timeout=200ms")
        for end, state in (("done", "completed"), ("fails", "scheduled")):
            with self.subTest(end=end), psycopg.connect(URL) as conn:
                go_on = threading.Event()
                self.addCleanup(go_on.set)

                async def handle(job: Any) -> None:
                    while not go_on.is_set():
                        await asyncio.sleep(0.001)
                    if end == "fails":
                        raise openqueue.Failed("x")

                jobs = [self.enqueue() for _ in range(4)]
                running = self.start(self.either(handle), db=url, pooler=True)
                self.until("all run", lambda: [self.state(j) for j in jobs] == ["leased"] * 4)
                openqueue.cancel(conn, jobs[1])
                go_on.set()
                for job in (jobs[0], jobs[2], jobs[3]):
                    self.until_state(job, state)
                self.assertEqual(self.state(jobs[1]), "leased")
                conn.rollback()
                self.until_state(jobs[1], state)
                self.assertIsNone(running.end())

    def test_free_handlers_are_used(self: Any) -> None:
        """While a job runs, what comes next is begun by the handlers that are free."""
        begun: list[int] = []
        over = threading.Event()
        self.addCleanup(over.set)

        def handle(job: Any) -> Any:
            begun.append(job.id)
            return wait() if isinstance(self, support.Tasks) else over.wait(PATIENCE) and None

        async def wait() -> None:
            while not over.is_set():
                await asyncio.sleep(0.01)

        running = self.start(handle, concurrency=6)
        for n in range(1, 7):
            self.enqueue(n)
            self.until("it is begun", lambda: len(begun) == n)
        over.set()
        self.assertIsNone(running.end())

    def test_a_connect_that_swallows_cancels(self: Any) -> None:
        """As psycopg's does in Python 3.11 now and then: the worker ends all the same."""
        connecting = threading.Event()
        first = True

        async def connect() -> psycopg.AsyncConnection[Any]:
            nonlocal first
            if not first:
                connecting.set()
                try:
                    await asyncio.sleep(PATIENCE * 2)
                except asyncio.CancelledError:
                    pass
            first = False
            return await psycopg.AsyncConnection.connect(URL, autocommit=True)

        running = self.start(lambda job: None, db=connect)
        self.assertTrue(connecting.wait(PATIENCE), "the second connection is to listen")
        self.assertIsNone(running.end())

    def test_a_broken_part_ends_the_worker(self: Any) -> None:
        """No part of a worker dies in silence: jobs would be lost without heartbeats."""
        job = self.enqueue()
        with mock.patch.object(_worker.BaseWorker, "_beat", mock.AsyncMock(side_effect=ZeroDivisionError)):
            with self.assertLogs("openqueue", logging.ERROR):
                running = self.start(lambda job: None)
                self.assertIsInstance(running.wait(), ZeroDivisionError)
        self.until("its end is known", lambda: self.state(job) in ("ready", "completed"))

    def test_progress(self: Any) -> None:
        """It is seen; when the job is cancelled, the handler ends."""
        threads = isinstance(self, support.Threads)
        seen = threading.Event()

        def handle(job: Any) -> Any:
            job.progress({"done": 1})
            assert seen.wait(PATIENCE)
            job.progress({"done": 2})
            raise AssertionError("it was cancelled")

        async def handle_async(job: Any) -> Any:
            await job.progress({"done": 1})
            while not seen.is_set():
                await asyncio.sleep(0.005)
            await job.progress({"done": 2})
            await asyncio.sleep(PATIENCE)

        outcomes: list[Any] = []
        job = self.enqueue()
        running = self.start(handle if threads else handle_async, observe=outcomes.append)
        self.until(
            "progress", lambda: self.ask("select progress from oq_get(%s)", job) == {"done": 1}
        )
        self.assertTrue(openqueue.cancel(self.db, job))
        seen.set()
        self.until("the end", lambda: outcomes)
        running.end()
        self.assertEqual(outcomes[0].state, "cancelled")
        self.assertIsInstance(
            outcomes[0].error, openqueue.Stopped if threads else asyncio.CancelledError
        )
        self.assertEqual(outcomes[0].job.why, "cancelled")

    def test_progress_waits_for_nobody(self: Any) -> None:
        """Neither for the handler's own transaction, which has acked, nor for another one that is about to cancel."""
        threads = isinstance(self, support.Threads)

        def handle(job: Any) -> Any:
            if job.payload == "own":
                with psycopg.connect(URL) as conn:
                    job.ack(conn)
                    job.progress(1)
            else:
                with psycopg.connect(URL) as conn:
                    openqueue.cancel(conn, job.id)
                    job.progress(1)
                    conn.rollback()

        async def handle_async(job: Any) -> Any:
            async with await psycopg.AsyncConnection.connect(URL) as conn:
                if job.payload == "own":
                    await job.ack(conn)
                    await job.progress(1)
                else:
                    await aio.cancel(conn, job.id)
                    await job.progress(1)
                    await conn.rollback()

        for pooler in (False, True):
            for what in ("own", "another's"):
                with self.subTest(what=what, pooler=pooler):
                    job = self.enqueue(what)
                    running = self.start(handle if threads else handle_async, pooler=pooler)
                    self.until("its end", lambda: self.state(job) in ("completed", "scheduled"))
                    self.assertEqual(self.ask("select error from oq_get(%s)", job), None)
                    self.assertIsNone(running.end())

    def test_throttle(self: Any) -> None:
        until = datetime.now(timezone.utc) + timedelta(hours=1)

        def handle(job: Any) -> Any:
            if isinstance(self, support.Threads):
                with psycopg.connect(URL, autocommit=True) as conn:
                    job.throttle(conn, until)
                return None
            return throttle(job)

        async def throttle(job: Any) -> None:
            async with await psycopg.AsyncConnection.connect(URL, autocommit=True) as conn:
                await job.throttle(conn, until)

        self.until_state_of_one(handle)
        job = self.enqueue()
        self.assertIsNone(self.ask("select job_id from oq_lease(%s)", self.queue))
        self.assertEqual(self.state(job), "ready")

    def test_abandoned(self: Any) -> None:
        """Handlers that do not return though they were told to are left behind; what ended is acked."""
        stuck = threading.Event()
        forever = threading.Event()
        self.addCleanup(forever.set)

        async def deaf(job: Any) -> None:
            while not forever.is_set():
                try:
                    stuck.set()
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    pass

        def handle(job: Any) -> Any:
            if job.payload == "deaf":
                if isinstance(self, support.Tasks):
                    return deaf(job)
                stuck.set()
                forever.wait(PATIENCE)

        job = self.enqueue("deaf")
        done = self.enqueue("done")
        with mock.patch.object(_worker, "GRACE", 0.2):
            running = self.start(handle, concurrency=2, drain=0.05)
            self.assertTrue(stuck.wait(PATIENCE))
            self.until_state(done, "completed")
            running.worker.stop()
            if isinstance(self, support.Tasks):
                # asyncio.run waits for the task.
                self.until("told", lambda: running.worker._closed)
                threading.Timer(1, forever.set).start()
            self.assertIsInstance(running.wait(), openqueue.Abandoned)
        self.assertEqual(self.state(job), "leased")

    def test_drain_without_server(self: Any) -> None:
        """A server that is gone while a worker drains takes no time from the handlers that run."""
        begun: list[str] = []
        over = threading.Event()
        outcomes: dict[Any, str] = {}

        async def handle(job: Any) -> None:
            begun.append(job.payload)
            while not over.is_set():
                await asyncio.sleep(0.005)
            while job.payload == "goes on" and "ends" not in outcomes:
                await asyncio.sleep(0.005)

        async def dead(*args: Any) -> Any:
            raise ConnectionFailed("the server is gone")

        self.enqueue("ends")
        self.enqueue("goes on")
        running = self.start(
            self.either(handle),
            concurrency=2,
            observe=lambda o: outcomes.update({o.job.payload: o.state}),
        )
        self.until("both run", lambda: len(begun) == 2)
        with mock.patch.object(_worker, "backoff", lambda failures: 0.01):
            running.worker.stop()
            self.until("it drains", lambda: running.worker._closed)
            running.worker._lane.call = running.worker._out.call = dead
            over.set()
            self.assertIsNone(running.wait())
        self.assertEqual(outcomes, {"ends": "lost", "goes on": "lost"})

    def test_arguments(self: Any) -> None:
        for options in (
            {"concurrency": 0},
            {"concurrency": 2.5},
            {"concurrency": "4"},
            {"batch": 0},
            {"batch": 2.5},
            {"batch": 10_001},
            {"lease_seconds": 0},
            {"lease_seconds": 1.5},
            {"lease_seconds": True},
            {"poll": 0},
            {"poll": "1"},
            {"drain": -1},
            {"drain": None},
            {"timeout": 0},
            {"timeout": float("nan")},
            {"handler": None},
        ):
            kind = openqueue.Worker if isinstance(self, support.Threads) else aio.Worker
            name, value = next(iter(options.items()))
            with self.subTest(options=options):
                with self.assertRaisesRegex(openqueue.ArgumentError, f"{name} {value!r}"):
                    kind(URL, self.queue, **{"handler": lambda job: None, **options})
        running = self.start(lambda job: None)
        running.end()
        with self.assertRaises(RuntimeError):
            asyncio.run(running.worker._run(()))

    def test_no_end_of_time(self: Any) -> None:
        job = self.enqueue()
        running = self.start(lambda job: None, poll=math.inf, drain=math.inf, timeout=math.inf)
        self.until_state(job, "completed")
        self.assertIsNone(running.end())

    def test_stopped_before_it_runs(self: Any) -> None:
        job = self.enqueue()
        running = self.start(lambda job: None)
        running.worker.stop()
        running.worker.stop()
        self.assertIsNone(running.wait())
        self.assertIn(self.state(job), ("ready", "completed"))

    def test_several_and_a_signal(self: Any) -> None:
        """One signal drains all workers at once: none leases on while another has not ended."""
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        other = f"{self.queue}.2"
        many: list[int] = []
        late: list[int] = []
        states: list[str] = []

        told = threading.Event()

        async def short(job: Any) -> None:
            (late if told.is_set() else many).append(job.id)
            await asyncio.sleep(0.02)

        async def long(job: Any) -> None:
            while len(many) < 3:
                await asyncio.sleep(0.005)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.2)
            told.set()
            await asyncio.sleep(1)

        openqueue.enqueue_bulk(self.db, self.queue, range(200))
        job = openqueue.enqueue(self.db, other)
        self.together(
            self.worker(self.queue, self.either(short), concurrency=1),
            self.worker(other, self.either(long), observe=lambda o: states.append(o.state)),
        )
        self.assertEqual((states, self.state(job), late), (["acked"], "completed", []))
        self.assertEqual(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)

    def test_several_and_a_failure(self: Any) -> None:
        """One that fails stops the others, which drain, and is raised; it is logged at once."""
        self.db.execute("drop role if exists no_worker")
        self.db.execute("create role no_worker login")
        self.addCleanup(self.db.execute, "drop role no_worker")
        url = psycopg.conninfo.make_conninfo(URL, user="no_worker")
        job = self.enqueue()
        good = self.worker(self.queue, lambda job: None)
        with self.assertLogs("openqueue", logging.ERROR) as logs:
            with self.assertRaises(pg.InsufficientPrivilege):
                self.together(good, self.worker(self.queue, lambda job: None, url))
        self.assertEqual(len(logs.output), 1)
        self.assertIn(self.state(job), ("ready", "completed"))
        self.assertTrue(good.stopping)
        with self.assertRaises(openqueue.ArgumentError):
            self.together()

    def test_several_that_are_stopped(self: Any) -> None:
        """Each can be stopped by itself; all have ended when it returns."""
        workers: list[Any] = []
        first = self.enqueue()
        second: list[int] = []

        def begin(job: Any) -> None:
            workers[0].stop()
            second.append(openqueue.enqueue(self.db, f"{self.queue}.2"))

        workers.append(self.worker(self.queue, begin))
        workers.append(self.worker(f"{self.queue}.2", lambda job: workers[1].stop()))
        self.together(*workers)
        self.assertEqual([self.state(j) for j in (first, *second)], ["completed"] * 2)


class ThreadsTest(support.Threads, Both, support.Case):
    def test_a_coroutine_function(self) -> None:
        """It is refused where it is given, and not at each job."""

        async def handle(job: Any) -> None:
            pass

        class Handler:
            async def __call__(self, job: Any) -> None:
                pass

        for handler, middleware in (
            (handle, []),
            (functools.partial(handle), []),
            (Handler(), []),
            (lambda job: None, [lambda handler: handle]),
        ):
            with self.subTest(handler=handler), self.assertRaisesRegex(openqueue.ArgumentError, "openqueue.aio"):
                openqueue.Worker(URL, self.queue, handler, middleware=middleware)  # type: ignore[arg-type]
        with self.assertRaisesRegex(openqueue.ArgumentError, "openqueue.aio"):
            testing.drain(self.db, self.queue, handle)

    def test_context_manager(self) -> None:
        with openqueue.Worker(URL, self.queue, lambda job: None):
            self.until_state(openqueue.enqueue(self.db, self.queue), "completed")

    def test_context_manager_that_fails(self) -> None:
        async def connect() -> Any:
            raise TypeError("no")

        with self.assertRaises(TypeError):
            with openqueue.Worker(connect, self.queue, lambda job: None) as worker:
                self.until("its end", lambda: not worker._thread.is_alive())

    def test_context_manager_that_is_refused(self) -> None:
        """Nobody looks at it before the end of the block: the log says it at once."""
        self.db.execute("drop role if exists no_worker")
        self.db.execute("create role no_worker login")
        self.addCleanup(self.db.execute, "drop role no_worker")
        url = psycopg.conninfo.make_conninfo(URL, user="no_worker")
        with self.assertRaises(pg.InsufficientPrivilege), self.assertLogs("openqueue", logging.ERROR) as logs:
            with openqueue.Worker(url, self.queue, lambda job: None) as worker:
                self.until("it is said", lambda: logs.output)
                self.assertRegex(logs.output[0], rf"worker {worker.worker_id} ends\n(.*\n)*.*permission denied")
        self.assertEqual(len(logs.output), 1)

    def test_signals(self) -> None:
        """The first drains; afterwards the handlers of before are there again."""
        heard: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        began = threading.Event()

        def handle(job: openqueue.Job[Any]) -> None:
            began.set()
            os.kill(os.getpid(), signal.SIGTERM)

        job = openqueue.enqueue(self.db, self.queue)
        openqueue.Worker(URL, self.queue, handle).run()
        self.assertTrue(began.is_set())
        self.assertEqual(self.state(job), "completed")
        self.assertEqual(heard, [])
        os.kill(os.getpid(), signal.SIGTERM)
        self.assertEqual(heard, [signal.SIGTERM])
        worker = openqueue.Worker(URL, self.queue, lambda job: worker.stop())
        openqueue.enqueue(self.db, self.queue)
        worker.run()  # Ended without a signal.
        os.kill(os.getpid(), signal.SIGTERM)
        self.assertEqual(heard, [signal.SIGTERM] * 2)

    def lease(self, job_id: int) -> Any:
        """When the job's first lease ends."""
        return self.ask("select lease_expires_at from oq_get(%s) where attempt = 1", job_id)

    def until_kept(self, job_id: int) -> None:
        """Until a heartbeat from now on has kept the job."""
        before = self.lease(job_id)
        self.until("heartbeats", lambda: (self.lease(job_id) or before) > before)

    def test_a_report_that_waits_for_a_lock(self) -> None:
        """Neither heartbeats nor acks and leases wait for it."""
        tokens: dict[str, int] = {}
        locked, over = threading.Event(), threading.Event()
        self.addCleanup(over.set)

        def handle(job: openqueue.Job[str]) -> None:
            tokens[job.payload] = job.token
            if job.payload == "fails":
                assert locked.wait(PATIENCE)
                raise openqueue.Failed("x")
            if job.payload == "long":
                assert over.wait(PATIENCE)

        long, fails = self.enqueue("long"), self.enqueue("fails")
        running = self.start(handle, concurrency=3, lease_seconds=6)
        self.until("both run", lambda: len(tokens) == 2)
        with psycopg.connect(URL) as conn:
            conn.execute("select oq_heartbeat(%s, %s, 60)", [fails, tokens["fails"]])
            locked.set()
            self.until(
                "the report waits",
                lambda: self.ask(
                    "select count(*) from pg_stat_activity where datname = current_database()"
                    " and wait_event_type = 'Lock' and query like '%%oq_nack(%%' and query not like '%%pg_stat%%'"
                ),
            )
            self.until_kept(long)
            self.until_state(self.enqueue("short"), "completed")
            conn.commit()
        self.until_state(fails, "scheduled")
        over.set()
        self.until_state(long, "completed")
        self.assertIsNone(running.end())

    def test_the_ack_in_a_transaction(self) -> None:
        """No heartbeat waits for it; when it fails, they go on, and the work can be done again."""
        over = threading.Event()
        self.addCleanup(over.set)
        runs: set[str] = set()

        def handle(job: openqueue.Job[str]) -> Any:
            runs.add(job.payload)
            if job.payload == "other":
                return over.wait(PATIENCE)
            with psycopg.connect(URL) as conn:
                with self.assertRaises(pg.DivisionByZero):
                    conn.execute("select 1 / 0")
                with self.assertRaises(pg.InFailedSqlTransaction):
                    job.ack(conn)
                conn.rollback()
                self.until_kept(job.id)
                openqueue.enqueue(conn, f"{self.queue}.2")
                job.ack(conn, {"n": 1})
                self.until_kept(other)
            return object()  # Nobody looks at it.

        outcomes: list[Any] = []
        other, job = self.enqueue("other"), self.enqueue("acks")
        running = self.start(handle, concurrency=2, lease_seconds=6, observe=outcomes.append)
        self.until_state(job, "completed")
        over.set()
        self.until_state(other, "completed")
        self.assertIsNone(running.end())
        self.assertEqual([(o.state, o.error) for o in outcomes], [("acked", None)] * 2)
        self.assertEqual(self.ask("select result from oq_get(%s)", job), {"n": 1})
        self.assertEqual(self.ask("select count(*) from oq_jobs where queue_name = %s", f"{self.queue}.2"), 1)

    def test_check(self) -> None:
        """A handler that never sleeps asks whether it has to end."""
        outcomes: list[Any] = []
        began = threading.Event()

        def handle(job: openqueue.Job[Any]) -> None:
            began.set()
            while True:
                job.check()

        openqueue.enqueue(self.db, self.queue)
        running = self.start(handle, drain=0.01, observe=outcomes.append)
        self.assertTrue(began.wait(PATIENCE))
        self.assertIsNone(running.end())
        self.assertEqual([o.state for o in outcomes], ["released"])
        self.assertTrue(outcomes[0].job.stopped)


class TasksTest(support.Tasks, Both, support.Case):
    def test_a_handler_that_blocks(self) -> None:
        """It stops the heartbeats: the lease is lost, and not said to be acked."""

        async def handle(job: aio.Job[Any]) -> Any:
            if job.attempt > 1:
                return "second"
            time.sleep(1.2)
            self.until("the lease is taken back", lambda: self.ask("select oq_reap()") or self.state(job.id) != "leased")
            return "first"

        states: list[str] = []
        job = self.enqueue()
        running = self.start(handle, lease_seconds=1, observe=lambda o: states.append(o.state))
        self.until_state(job, "completed")
        self.assertIsNone(running.end())
        self.assertEqual(states, ["lost", "acked"])
        self.assertEqual(self.ask("select result from oq_get(%s)", job), "second")

    def test_begun_behind_a_handler_that_blocks(self) -> None:
        """A job whose task was there before and comes to its turn afterwards is not begun on a lease that has ended."""
        begun: list[Any] = []

        async def handle(job: aio.Job[Any]) -> None:
            begun.append((job.payload, job.attempt))
            if len(begun) == 1:
                time.sleep(1.2)

        states: list[str] = []
        self.ask("select count(*) from oq_enqueue_bulk(%s, '{0, 1}')", self.queue)
        running = self.start(handle, concurrency=2, lease_seconds=1, observe=lambda o: states.append(o.state))
        self.until("all are done", lambda: states.count("acked") == 2)
        self.assertIsNone(running.end())
        self.assertNotIn((1, 1), begun)

    def test_a_plain_function(self) -> None:
        """What it returns is its result, with middlewares and without."""

        def handle(job: Any) -> Any:
            return [job.payload]

        def outer(handler: Any) -> Any:
            async def run(job: Any) -> Any:
                return [await handler(job)]

            return run

        for middleware, want in (([], ["x"]), ([outer], [["x"]])):
            with self.subTest(middleware=middleware):
                job = self.enqueue("x")
                worker = aio.Worker(URL, self.queue, handle, middleware=middleware)  # type: ignore[arg-type]
                running = support.Running(self, lambda: asyncio.run(worker.run()), worker)
                self.until("its end", lambda: self.state(job) in ("completed", "scheduled"))
                self.assertEqual(self.ask("select result from oq_get(%s)", job), want)
                self.assertIsNone(running.end())

    def test_cancelled(self) -> None:
        """Cancelled, run() drains; cancelled again, it leaves everything."""
        for times in (1, 2):
            with self.subTest(times=times):
                job = openqueue.enqueue(self.db, self.queue)
                told = threading.Event()
                asyncio.run(self.cancelled(times, told))
                self.assertEqual(self.state(job), "completed" if times == 1 else "leased")
                self.assertEqual(told.is_set(), times == 2)

    async def cancelled(self, times: int, told: threading.Event) -> None:
        began = asyncio.Event()
        go_on = asyncio.Event()

        async def handle(job: aio.Job[Any]) -> None:
            began.set()
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                told.set()
                raise

        task = asyncio.create_task(aio.Worker(URL, self.queue, handle).run())
        async with asyncio.timeout(PATIENCE):
            await began.wait()
            task.cancel()
            await asyncio.sleep(0)
            if times == 1:
                go_on.set()
            else:
                await asyncio.sleep(0.05)
                task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task

    def test_the_ack_in_a_transaction(self) -> None:
        states: list[bool] = []

        async def handle(job: aio.Job[Any]) -> None:
            async with await psycopg.AsyncConnection.connect(URL) as conn:
                with self.assertRaises(pg.DivisionByZero):
                    await conn.execute("select 1 / 0")
                with self.assertRaises(pg.InFailedSqlTransaction):
                    await job.ack(conn)
                states.append(job._acked)
                await conn.rollback()
                async with conn.cursor() as cursor:
                    await job.ack(cursor, [1])
                states.append(job._acked)

        job = self.enqueue()
        running = self.start(handle)
        self.until_state(job, "completed")
        self.assertIsNone(running.end())
        self.assertEqual(states, [False, True])
        self.assertEqual(self.ask("select result from oq_get(%s)", job), [1])

    def test_context_manager(self) -> None:
        async def handle(job: aio.Job[Any]) -> None:
            pass

        async def refused() -> None:
            raise TypeError("no")

        async def main() -> None:
            async with aio.Worker(URL, self.queue, handle):
                job = self.enqueue()
                async with asyncio.timeout(PATIENCE):
                    while self.state(job) != "completed":
                        await asyncio.sleep(0.01)
            with self.assertRaisesRegex(TypeError, "no"), self.assertLogs("openqueue", logging.ERROR) as logs:
                async with aio.Worker(refused, self.queue, handle):
                    async with asyncio.timeout(PATIENCE):
                        while not logs.output:
                            await asyncio.sleep(0.01)
            self.assertEqual(len(logs.output), 1)
            self.assertEqual(asyncio.all_tasks(), {asyncio.current_task()})

        asyncio.run(main())

    def test_several_cancelled(self) -> None:
        """Cancelled, run() drains all of them."""
        begun: list[int] = []

        async def handle(job: aio.Job[Any]) -> None:
            begun.append(job.id)
            await asyncio.sleep(0.3)

        jobs = [self.enqueue(), openqueue.enqueue(self.db, f"{self.queue}.2")]

        async def main() -> None:
            task = asyncio.create_task(
                aio.run(aio.Worker(URL, self.queue, handle), aio.Worker(URL, f"{self.queue}.2", handle))
            )
            async with asyncio.timeout(PATIENCE):
                while len(begun) < 2:
                    await asyncio.sleep(0.01)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
            self.assertEqual(asyncio.all_tasks(), {asyncio.current_task()})

        asyncio.run(main())
        self.assertEqual([self.state(j) for j in jobs], ["completed"] * 2)
