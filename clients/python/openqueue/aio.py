"""OpenQueue on asyncio: the same names as in :mod:`openqueue`, as coroutines, and a Worker whose
handlers are coroutines."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal as _signal
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Generic, Unpack

import psycopg

from . import _calls as calls
from ._calls import Enqueued, JobOptions, JobPatch, JobResult, NewJob, encode
from ._job import BaseJob, P
from ._run import AsyncDB, AsyncPool, Pool, run_async
from ._session import Connect
from ._trace import trace_of, use_trace
from ._worker import BaseWorker, Outcome, duration, together

__all__ = [
    "AsyncDB",
    "AsyncPool",
    "Handler",
    "Job",
    "Middleware",
    "Worker",
    "cancel",
    "enqueue",
    "enqueue_bulk",
    "enqueue_many",
    "get",
    "result",
    "run",
    "timeout",
    "update",
]

_EMPTY: dict[str, Any] = {}


async def enqueue(
    db: AsyncDB, queue: str, payload: Any = _EMPTY, **options: Unpack[JobOptions]
) -> int:
    """Enqueues one job, in the transaction of db, and returns its id. See openqueue.enqueue()."""
    return await run_async(db, calls.enqueue(queue, payload, options))


async def enqueue_bulk(
    db: AsyncDB,
    queue: str,
    payloads: Iterable[Any],
    *,
    priority: int = 0,
    run_at: datetime | None = None,
    max_retries: int | None = None,
) -> list[int]:
    """Enqueues many plain jobs of one queue, the fast way. See openqueue.enqueue_bulk()."""
    return await run_async(
        db, calls.enqueue_bulk(queue, payloads, priority, run_at, max_retries)
    )


async def enqueue_many(
    db: AsyncDB, jobs: Iterable[NewJob | Mapping[str, Any]]
) -> list[Enqueued]:
    """Enqueues jobs of their own queues and options. See openqueue.enqueue_many()."""
    return await run_async(db, calls.enqueue_many(jobs))


async def cancel(db: AsyncDB, job_id: int, reason: str | None = None) -> bool:
    """Cancels a job in any unfinished state. False where it is finished or unknown."""
    return await run_async(db, calls.cancel(job_id, reason))


async def update(db: AsyncDB, job_id: int, **patch: Unpack[JobPatch]) -> bool:
    """Changes a job that nobody holds. False where it is held or over."""
    return await run_async(db, calls.update(job_id, patch))


async def get(db: AsyncDB, job_id: int) -> dict[str, Any] | None:
    """The job's row of oq_jobs, or None."""
    return await run_async(db, calls.get(job_id))


async def result(db: AsyncDB, job_id: int) -> JobResult | None:
    """The job's state, result and error, or None."""
    return await run_async(db, calls.result(job_id))


class Job(BaseJob[P]):
    """A leased job, in the hands of a coroutine, which is cancelled when it has to end: ``why`` says
    why then."""

    __slots__ = ()

    async def ack(
        self,
        db: psycopg.AsyncConnection[Any] | psycopg.AsyncCursor[Any],
        result: Any = None,
    ) -> None:
        """Acks in the caller's transaction. See openqueue.Job.ack()."""
        value = None if result is None else encode(result)
        self._acked = True
        try:
            await run_async(db, calls.ack_strictly(self.id, self.token, value))
        except BaseException:
            self._acked = False
            raise

    async def progress(self, value: Any) -> None:
        """Shows value in oq_jobs, and is a heartbeat: where the lease is gone, the handler is
        cancelled. See openqueue.Job.progress()."""
        if self._worker is not None:
            await self._worker._progress(self, value)

    async def throttle(self, db: AsyncDB, until: datetime) -> None:
        """Keeps the job's queue, or its group where it has one, from everybody until then."""
        await run_async(db, calls.throttle(self.queue, until, self.group_key))


Handler = Callable[[Job[P]], Awaitable[Any]]
"""Does a job, as openqueue.Handler does. It shares its thread with the worker: where it blocks, with
time.sleep or a driver that waits, no heartbeat goes out meanwhile."""
Middleware = Callable[[Handler[Any]], Handler[Any]]
"""Wraps a handler."""


def timeout(seconds: float) -> Middleware:
    """A middleware: the handler is cancelled after so many seconds, with ``why`` = ``timeout``, and the
    attempt has failed by TimeoutError. Raises ArgumentError."""
    duration("timeout", seconds)

    def middleware(handler: Handler[Any]) -> Handler[Any]:
        async def handle(job: Job[Any]) -> Any:
            def late() -> None:
                if job.why is None:
                    job.why = "timeout"

            async with asyncio.timeout(seconds) as limit:
                # In the same turn of the loop, and so before the handler sees its cancellation.
                timer = asyncio.get_running_loop().call_at(limit.when() or 0.0, late)
                try:
                    return await handler(job)
                finally:
                    timer.cancel()

        return handle

    return middleware


def _awaitable(handler: Handler[Any]) -> Handler[Any]:
    """A plain function as well, as middlewares await it."""
    if inspect.iscoroutinefunction(handler):
        return handler

    async def handle(job: Job[Any]) -> Any:
        return await _call(handler, job)

    return handle


async def _call(handler: Handler[Any], job: Job[Any]) -> Any:
    value = handler(job)
    return await value if inspect.isawaitable(value) else value


async def _handle(handler: Handler[Any], job: Job[Any]) -> None:
    """Runs the handler, and leaves its result or error in the job."""
    began = monotonic()
    try:
        trace = trace_of(job.headers)
        if trace is None:
            value = await _call(handler, job)
        else:
            with use_trace(trace):
                value = await _call(handler, job)
        if value is not None and not job._acked:
            job._result = encode(value)
    except BaseException as e:  # A cancellation; SystemExit as well, which is the job's failure.
        job._error = e
    finally:
        job.seconds = monotonic() - began


class Worker(BaseWorker[Job[P]], Generic[P]):
    """Does the jobs of one queue, each in a task. The arguments are those of openqueue.Worker.

    ``await run()`` works until stop(), or until its task is cancelled, and drains; cancelled once
    more it leaves everything as it is. As an asynchronous context manager it works in a task of its
    own, and drains at the end of the block; what ends it before is logged as an error at once, and
    raised at the end.
    """

    _job_class = Job

    def __init__(
        self,
        db: str | AsyncPool | Pool | psycopg.BaseConnection[Any] | Connect,
        queue: str,
        handler: Handler[P],
        *,
        worker_id: str | None = None,
        concurrency: int = 10,
        batch: int | None = None,
        lease_seconds: int | None = None,
        poll: float | None = None,
        drain: float = 30.0,
        timeout: float = 30.0,
        pooler: bool = False,
        decode: Callable[[Any], P] | None = None,
        middleware: Sequence[Middleware] = (),
        observe: Callable[[Outcome[Job[P]]], None] | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        super().__init__(
            db,
            queue,
            handler,
            worker_id=worker_id,
            concurrency=concurrency,
            batch=batch,
            lease_seconds=lease_seconds,
            poll=poll,
            drain=drain,
            timeout=timeout,
            pooler=pooler,
            decode=decode,
            observe=observe,
            logger=logger,
        )
        for wrap in reversed(middleware):
            handler = wrap(_awaitable(handler))
        self._handler = handler
        self._queue: deque[Job[P]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[None] | None = None

    async def run(self, *, signals: Sequence[int] = ()) -> None:
        """Works until it is stopped, and drains as openqueue.Worker.run() does.

        ``signals`` are caught: for a program that is this one worker. Raises the server's refusal of
        the very first lease, and Abandoned.
        """
        inner = asyncio.ensure_future(self._run(signals))
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            self.stop()
            try:
                await asyncio.shield(inner)
            except asyncio.CancelledError:
                inner.cancel()
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(inner, return_exceptions=True)
            raise

    async def __aenter__(self) -> Worker[P]:
        async def work() -> None:
            try:
                await self.run()
            except Exception as e:
                self._died(e)

        self._running = asyncio.create_task(work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        if self._running is not None:
            await self._running
        if self._failure is not None:
            raise self._failure

    def _give(self, jobs: list[Job[P]]) -> None:
        self._queue.extend(jobs)
        self._start()

    def _start(self) -> None:
        while self._queue and len(self._tasks) < self.concurrency and not self._closed:
            job = self._queue.popleft()
            assert self._loop is not None
            task = self._loop.create_task(self._work(job))
            job._handle = task
            self._tasks.add(task)
            task.add_done_callback(lambda task, job=job: self._ended(task, job))  # type: ignore[misc]

    async def _work(self, job: Job[P]) -> None:
        if job._begin():  # Not before: what comes to its turn first may block.
            await _handle(self._handler, job)

    def _ended(self, task: asyncio.Task[None], job: Job[P]) -> None:
        self._tasks.discard(task)
        job._handle = None
        if task.cancelled():  # Before its first step.
            job._error = asyncio.CancelledError()
        elif task.exception() is not None:
            job._error = task.exception()
        self._settle(job)
        self._start()
        # As few wake-ups as there can be: to lease, to start the time of the acks, or for a full batch.
        if self._closed or not self._queue or len(self._acks) in (1, self.batch):
            self._wake()

    def _unstarted(self) -> int:
        return len(self._queue)

    def _take_back(self) -> list[Job[P]]:
        jobs = list(self._queue)
        self._queue.clear()
        return jobs

    def _tell(self, job: Job[P]) -> None:
        if job._handle is not None:
            job._handle.cancel(job.why)


async def run(
    *workers: Worker[Any], signals: Sequence[int] = (_signal.SIGTERM, _signal.SIGINT)
) -> None:
    """Runs several workers until all have ended. See openqueue.run().

    Cancelled, it drains all of them; cancelled once more it leaves everything as it is.
    """
    await together(workers, lambda worker: worker.run(), signals)
