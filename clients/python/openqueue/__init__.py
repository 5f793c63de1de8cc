"""OpenQueue: a job queue inside PostgreSQL. For asyncio see :mod:`openqueue.aio`."""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue as queues
import signal as _signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Generic, Unpack

import psycopg

from . import _calls as calls
from ._calls import Enqueued, JobOptions, JobPatch, JobResult, NewJob, Retry, encode
from ._errors import (
    TRY_AGAIN,
    Abandoned,
    ArgumentError,
    Discard,
    DuplicateJob,
    Duration,
    Failed,
    LeaseLost,
    NoSuchQueue,
    OpenQueueError,
    QueueFull,
    RetryAfter,
    Snooze,
    Stopped,
    sqlstate,
)
from ._job import BaseJob, P, Why
from ._run import DB, AsyncPool, Pool
from ._run import run as call
from ._session import Connect
from ._trace import Trace, current_trace, trace_of, trace_with, use_trace
from ._worker import BaseWorker, Outcome, duration, together

__all__ = [
    "DB",
    "TRY_AGAIN",
    "Abandoned",
    "ArgumentError",
    "Discard",
    "DuplicateJob",
    "Duration",
    "Enqueued",
    "Failed",
    "Handler",
    "Job",
    "JobOptions",
    "JobPatch",
    "JobResult",
    "LeaseLost",
    "Middleware",
    "NewJob",
    "NoSuchQueue",
    "OpenQueueError",
    "Outcome",
    "Pool",
    "QueueFull",
    "Retry",
    "RetryAfter",
    "Snooze",
    "Stopped",
    "Trace",
    "Why",
    "Worker",
    "cancel",
    "current_trace",
    "enqueue",
    "enqueue_bulk",
    "enqueue_many",
    "get",
    "result",
    "run",
    "sqlstate",
    "timeout",
    "trace_with",
    "update",
    "use_trace",
]

__version__ = "0.1.0"

_EMPTY: dict[str, Any] = {}


def enqueue(db: DB, queue: str, payload: Any = _EMPTY, **options: Unpack[JobOptions]) -> int:
    """Enqueues one job, in the transaction of db, and returns its id.

    payload is anything that json.dumps takes, or a dataclass. options are those of
    :class:`JobOptions`: ``priority``, ``run_at``, ``delay``, ``max_retries``, ``unique_key``, ...
    Raises ArgumentError, DuplicateJob, QueueFull, psycopg.errors.InsufficientPrivilege.
    """
    return call(db, calls.enqueue(queue, payload, options))


def enqueue_bulk(
    db: DB,
    queue: str,
    payloads: Iterable[Any],
    *,
    priority: int = 0,
    run_at: datetime | None = None,
    max_retries: int | None = None,
) -> list[int]:
    """Enqueues many plain jobs of one queue, the fast way: all or none, in one call.

    They have no headers, and carry no trace; for those there is enqueue_many(). The ids come in the payloads' order. Raises as enqueue().
    """
    return call(db, calls.enqueue_bulk(queue, payloads, priority, run_at, max_retries))


def enqueue_many(db: DB, jobs: Iterable[NewJob | Mapping[str, Any]]) -> list[Enqueued]:
    """Enqueues jobs of their own queues and options, all or none, in one call.

    What was made comes in the jobs' order. Raises as enqueue(); the message names the job's index.
    """
    return call(db, calls.enqueue_many(jobs))


def cancel(db: DB, job_id: int, reason: str | None = None) -> bool:
    """Cancels a job in any unfinished state. False where it is finished or unknown."""
    return call(db, calls.cancel(job_id, reason))


def update(db: DB, job_id: int, **patch: Unpack[JobPatch]) -> bool:
    """Changes a job that nobody holds. False where it is held or over."""
    return call(db, calls.update(job_id, patch))


def get(db: DB, job_id: int) -> dict[str, Any] | None:
    """The job's row of oq_jobs, or None."""
    return call(db, calls.get(job_id))


def result(db: DB, job_id: int) -> JobResult | None:
    """The job's state, result and error, or None."""
    return call(db, calls.result(job_id))


class Job(BaseJob[P]):
    """A leased job, in the hands of a function, which asks now and then whether it has to end."""

    __slots__ = ("_told", "_until")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._told: threading.Event | None = None
        self._until: float | None = None  # by timeout()

    @property
    def stopped(self) -> bool:
        """Whether the handler has to end; ``why`` says why."""
        if self.why is None and self._until is not None and monotonic() >= self._until:
            self.why = "timeout"
        return self.why is not None

    def check(self) -> None:
        """Raises Stopped where the handler has to end."""
        if self.stopped and self.why is not None:
            raise Stopped(self.why)

    def sleep(self, seconds: float | None = None) -> None:
        """Sleeps, for ever without seconds; raises Stopped as soon as the handler has to end."""
        if self._told is None:
            self._told = threading.Event()
        # Whoever sets why looks for the event afterwards, and this the other way round.
        if self.why is None:
            left = None if self._until is None else max(0.0, self._until - monotonic())
            if left is None or (seconds is not None and seconds < left):
                self._told.wait(seconds)
            elif not self._told.wait(left) and self.why is None:
                self.why = "timeout"
        self.check()

    def ack(
        self, db: psycopg.Connection[Any] | psycopg.Cursor[Any], result: Any = None
    ) -> None:
        """Acks in the caller's transaction, so that what it did there takes effect once, or not.

        The caller commits. From here on the worker takes the job for acked: it sends no heartbeat
        and, where the handler returns, no ack. What fails the transaction, or its commit (a deferred
        constraint, a connection that is lost), has to leave the handler, or the transaction with this
        ack to be run again; else the job is done by nobody, and begun again when its lease ends.
        Raises LeaseLost, which fails the transaction, and above READ COMMITTED errors of
        :data:`TRY_AGAIN`.
        """
        value = None if result is None else encode(result)
        self._acked = True  # No heartbeat any more: it would wait for this transaction's lock.
        try:
            call(db, calls.ack_strictly(self.id, self.token, value))
        except BaseException:
            self._acked = False
            raise

    def progress(self, value: Any) -> None:
        """Shows value in oq_jobs, is a heartbeat, and raises Stopped where the lease is gone.

        It waits for nobody: where a transaction is about to end the job, or ack() has, value is left out.
        Raises psycopg.Error where the server does not answer: the lease may still be good.
        """
        worker = self._worker
        if worker is not None and worker._loop is not None:
            done = asyncio.run_coroutine_threadsafe(worker._progress(self, value), worker._loop)
            done.result()
            self.check()

    def throttle(self, db: DB, until: datetime) -> None:
        """Keeps the job's queue, or its group where it has one, from everybody until then."""
        call(db, calls.throttle(self.queue, until, self.group_key))


Handler = Callable[[Job[P]], Any]
"""Does a job. What it returns is the job's result, where it is not None; what it raises fails the
attempt, but for Snooze, Discard and RetryAfter."""
Middleware = Callable[[Handler[Any]], Handler[Any]]
"""Wraps a handler."""


def timeout(seconds: float) -> Middleware:
    """A middleware: the handler has to end after so many seconds, as job.sleep() and job.check() say by
    Stopped, whose ``why`` is ``timeout``: the attempt has failed then. Raises ArgumentError."""
    duration("timeout", seconds)

    def middleware(handler: Handler[Any]) -> Handler[Any]:
        def handle(job: Job[Any]) -> Any:
            before, until = job._until, monotonic() + seconds
            job._until = until if before is None else min(before, until)
            try:
                return handler(job)
            finally:
                job._until = before

        return handle

    return middleware


def _plain(handler: Any) -> None:
    """A coroutine function would only make a coroutine, which nobody awaits."""
    for function in (handler, getattr(handler, "__call__", None)):
        if inspect.iscoroutinefunction(function):
            raise ArgumentError(f"handler {handler!r} is a coroutine function: openqueue.aio has the worker for it")


def _handle(handler: Handler[Any], job: Job[Any]) -> None:
    """Runs the handler, and leaves its result or error in the job."""
    began = monotonic()
    try:
        trace = trace_of(job.headers)
        if trace is None:
            value = handler(job)
        else:
            with use_trace(trace):
                value = handler(job)
        if value is not None and not job._acked:
            job._result = encode(value)
    except BaseException as e:  # SystemExit as well: it would end no more than this thread.
        job._error = e
    finally:
        job.seconds = monotonic() - began


class Worker(BaseWorker[Job[P]], Generic[P]):
    """Does the jobs of one queue, in threads. Times are in seconds.

    run() works until stop(), SIGTERM or SIGINT, and drains. As a context manager it works in a
    thread of its own, and drains at the end of the block, not on a signal; what ends it before is logged as an error at
    once, and raised at the end.

    ``db``: how to connect: a conninfo text, a pool or connection to connect like, or a function that
    gives an awaitable psycopg.AsyncConnection. The worker's connections, two to four, are its own.
    ``concurrency``: handlers at a time. ``batch``: jobs a lease, of which those wait in the worker that
    no handler is free for; concurrency. ``lease_seconds``: whole seconds; the queue's.
    ``poll``: how often to look though nothing woke it; 5, behind a pooler 1. ``drain``: how long
    running jobs may go on at the end. ``timeout``: of a call of the server. ``pooler``: a transaction
    pooler stands between: poll only, no prepared statements. ``decode``: makes the payload of what
    json.loads read. ``middleware``: the first is the outermost. ``observe``: is called with what became
    of each job, in the worker's own thread: keep it short. ``logger``: logging.getLogger("openqueue").
    ``worker_id``: shown to people; host name, process and a random part.

    Raises ArgumentError where one makes no sense.
    """

    _job_class = Job

    def __init__(
        self,
        db: str | Pool | AsyncPool | psycopg.BaseConnection[Any] | Connect,
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
        _plain(handler)
        for wrap in reversed(middleware):
            handler = wrap(handler)
            _plain(handler)
        self._handler = handler
        self._queue: queues.SimpleQueue[Job[P] | None] = queues.SimpleQueue()
        self._finished: deque[Job[P]] = deque()
        self._waking = False
        self._thread: threading.Thread | None = None

    def run(self, *, signals: Sequence[int] = (_signal.SIGTERM, _signal.SIGINT)) -> None:
        """Works until it is stopped, and drains: no job is begun any more, those not begun are
        released, those that run may finish within ``drain``, and are stopped and released after it.

        ``signals`` are caught, in the main thread only: the first drains, a second one does what it
        would do without a worker. Connections that fail are made again. Raises the server's refusal
        of the very first lease or connection, as of a role without rights or a database that does not
        exist, and Abandoned.
        """
        asyncio.run(self._run(signals))

    def start(self) -> None:
        """Works in a thread of its own, until stop() and join()."""

        def work() -> None:
            try:
                self.run(signals=())
            except BaseException as e:
                self._died(e)

        self._thread = threading.Thread(target=work, name="openqueue", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits for the end of what start() began, and raises what it raised."""
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Worker[P]:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()

    def _open(self) -> None:
        for i in range(self.concurrency):
            # Daemons: one that never returns must not keep the process from ending.
            threading.Thread(target=self._work, name=f"openqueue-{i}", daemon=True).start()

    def _work(self) -> None:
        """One handler's loop."""
        take, handler = self._queue.get, self._handler
        while True:
            job = take()
            if job is None:
                return
            if job._begin():
                _handle(handler, job)
            self._finished.append(job)
            # As few wake-ups as there can be: when there is something to lease or to report, for the
            # first to be acked, whose time starts, and for a full batch.
            if not self._waking and (
                not self._acks
                or self._closed
                or job._error is not None
                or self._queue.empty()
                or len(self._finished) >= self.batch
            ):
                self._waking = True
                try:
                    assert self._loop is not None
                    self._loop.call_soon_threadsafe(self._wake)
                except RuntimeError:  # The worker has ended without this thread.
                    return
            job = None

    def _collect(self) -> None:
        self._waking = False
        while self._finished:
            self._settle(self._finished.popleft())

    def _give(self, jobs: list[Job[P]]) -> None:
        for job in jobs:
            self._queue.put(job)

    def _unstarted(self) -> int:
        # Not what the queue says: threads that are free take a job in a moment, and tell nobody.
        return max(0, self._active - self.concurrency)

    def _take_back(self) -> list[Job[P]]:
        jobs: list[Job[P]] = []
        try:
            while True:
                job = self._queue.get_nowait()
                if job is not None:
                    jobs.append(job)
        except queues.Empty:
            return jobs

    def _tell(self, job: Job[P]) -> None:
        if job._told is not None:
            job._told.set()

    def _shut(self) -> None:
        for _ in range(self.concurrency):
            self._queue.put(None)


def run(
    *workers: Worker[Any], signals: Sequence[int] = (_signal.SIGTERM, _signal.SIGINT)
) -> None:
    """Runs several workers, as a program of several queues, until all have ended.

    ``signals`` are caught, in the main thread only: the first drains all workers at once, a second one
    does what it would do without them. One that fails, as Worker.run() may, stops the others; what it
    raised is raised when they have drained. Raises ArgumentError without a worker.
    """
    asyncio.run(together(workers, lambda worker: worker._run(()), signals))
