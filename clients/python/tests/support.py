"""What the tests share: a queue of its own for each, and waiting with an end."""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import os
import sys
import threading
import time
import unittest
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import psycopg

import openqueue
from openqueue import aio

URL = os.environ["DATABASE_URL"]
PATIENCE = 30.0
_numbers = itertools.count(1)

# A test that hangs says where.
faulthandler.dump_traceback_later(120, exit=True)


class Case(unittest.TestCase):
    """A connection that commits by itself, and a queue with ``options``."""

    options = "{}"

    def setUp(self) -> None:
        self.db: psycopg.Connection[Any] = psycopg.connect(URL, autocommit=True)
        self.addCleanup(self.db.close)
        self.queue = f"test.{time.time_ns()}.{next(_numbers)}"
        self.ask("select oq_create_queue(%s, %s)", self.queue, self.options)

    def ask(self, sql: str, *params: Any) -> Any:
        """The first column of the first row, or None."""
        row = self.db.execute(sql, params).fetchone()
        return row[0] if row else None

    def state(self, job_id: int) -> Any:
        return self.ask("select state from oq_get(%s)", job_id)

    def until(self, what: str, done: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := done()):
            if time.monotonic() > deadline:
                self.fail(f"never happened: {what}")
            time.sleep(0.005)
        return value

    def until_state(self, job_id: int, state: str) -> None:
        self.until(f"{job_id} is {state}", lambda: self.state(job_id) == state)

    def locks(self, pid: int) -> bool:
        """Whether a session waits for a lock."""
        return bool(
            self.ask(
                "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", pid
            )
        )


class Running:
    """A worker at work in a thread; ``outcomes`` is what it observed."""

    def __init__(self, case: Case, run: Callable[[], Any], worker: Any) -> None:
        self.worker = worker
        self.error: BaseException | None = None
        self._case = case

        def work() -> None:
            try:
                run()
            except BaseException as e:
                self.error = e

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        case.addCleanup(self.end)

    def wait(self) -> BaseException | None:
        """Its end, and what it raised."""
        self._thread.join(PATIENCE)
        self._case.assertFalse(self._thread.is_alive(), "the worker does not end")
        return self.error

    def end(self) -> BaseException | None:
        self.worker.stop()
        return self.wait()


class Threads:
    """Makes workers that run their handlers in threads."""

    def worker(
        self, queue: str, handler: Callable[[Any], Any], db: Any = URL, **options: Any
    ) -> openqueue.Worker[Any]:
        return openqueue.Worker(db, queue, handler, **options)

    def start(self, handler: Callable[[Any], Any], db: Any = URL, **options: Any) -> Running:
        case: Any = self
        worker = self.worker(case.queue, handler, db, **options)
        return Running(case, lambda: worker.run(signals=()), worker)

    def together(self, *workers: openqueue.Worker[Any]) -> None:
        """Runs them in this thread."""
        openqueue.run(*workers)

    def either(self, handler: Callable[[Any], Coroutine[Any, Any, Any]]) -> Callable[[Any], Any]:
        """A handler that is written as a coroutine, as this kind of worker takes it."""
        return lambda job: asyncio.run(handler(job))


class Tasks:
    """Makes workers that run their handlers, which are given as functions, in tasks."""

    def worker(
        self, queue: str, handler: Callable[[Any], Any], db: Any = URL, **options: Any
    ) -> aio.Worker[Any]:
        async def handle(job: Any) -> Any:
            value = handler(job)
            return await value if asyncio.iscoroutine(value) else value

        return aio.Worker(db, queue, handle, **options)

    def together(self, *workers: aio.Worker[Any]) -> None:
        """Runs them in this thread."""
        asyncio.run(aio.run(*workers))

    def either(self, handler: Callable[[Any], Coroutine[Any, Any, Any]]) -> Callable[[Any], Any]:
        """A handler that is written as a coroutine, as this kind of worker takes it."""
        return handler

    def start(self, handler: Callable[[Any], Any], db: Any = URL, **options: Any) -> Running:
        case: Any = self
        worker = self.worker(case.queue, handler, db, **options)

        async def run() -> None:
            await worker.run()
            case.assertEqual(asyncio.all_tasks(), {asyncio.current_task()}, "it leaves nothing behind")

        return Running(case, lambda: asyncio.run(run()), worker)
