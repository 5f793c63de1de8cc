"""For tests: do the jobs of a queue on the test's own connection, without a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import psycopg
from psycopg.pq import TransactionStatus as _Status
from psycopg.rows import dict_row

from . import DB, Handler, Job, _calls, aio
from . import _handle as _handle_here
from . import _plain
from ._calls import interval
from ._errors import Discard, RetryAfter, Snooze, describe
from ._job import BaseJob, P
from ._run import run, run_async

J = TypeVar("J", bound="BaseJob[Any]")


class Done(NamedTuple, Generic[J]):
    """What became of a job: ``completed``, ``scheduled``, ``ready``, ``dead``, ``expired``, ``released``
    or ``lost``."""

    job: J
    state: str
    error: BaseException | None


_WORKER = "openqueue.testing"
_SAVE = _calls.Call("savepoint openqueue_testing", [], _calls.nothing)
_UNDO = _calls.Call("rollback to savepoint openqueue_testing", [], _calls.nothing)


def drain(
    db: DB,
    queue: str,
    handler: Handler[P],
    *,
    decode: Callable[[Any], P] | None = None,
    max_jobs: int = 1000,
) -> list[Done[Job[P]]]:
    """Leases, does and reports one job after the other until the queue gives no more.

    In the transaction of db, which may be rolled back. Where a handler's SQL fails in it, what that
    handler did there is undone, and the test's transaction goes on. Retries and snoozed jobs are not
    waited for; more than max_jobs are an error.
    """
    _plain(handler)
    done: list[Done[Job[P]]] = []
    while True:
        row = run(db, _calls.lease_one(queue, _WORKER))
        if row is None:
            return done
        if len(done) == max_jobs:
            raise RuntimeError(f"{queue} is not empty after {max_jobs} jobs")
        job: Job[P] = Job(row, queue, decode)
        conn = db.connection if isinstance(db, psycopg.Cursor) else db
        joined = isinstance(conn, psycopg.Connection) and _status(conn) == _Status.INTRANS
        if joined:
            run(db, _SAVE)
        _handle_here(handler, job)
        undone = joined and _status(conn) == _Status.INERROR
        if undone:
            try:
                run(db, _UNDO)
            except psycopg.Error as e:  # The handler has ended the transaction, and failed in the next.
                raise job._error or e
        state = _own(job, undone)
        done.append(Done(job, state or _state(job, run(db, _verdict(job))), job._error))


async def drain_async(
    db: aio.AsyncDB,
    queue: str,
    handler: aio.Handler[P],
    *,
    decode: Callable[[Any], P] | None = None,
    max_jobs: int = 1000,
) -> list[Done[aio.Job[P]]]:
    """:func:`drain` for asyncio."""
    done: list[Done[aio.Job[P]]] = []
    while True:
        row = await run_async(db, _calls.lease_one(queue, _WORKER))
        if row is None:
            return done
        if len(done) == max_jobs:
            raise RuntimeError(f"{queue} is not empty after {max_jobs} jobs")
        job: aio.Job[P] = aio.Job(row, queue, decode)
        conn = db.connection if isinstance(db, psycopg.AsyncCursor) else db
        joined = isinstance(conn, psycopg.AsyncConnection) and _status(conn) == _Status.INTRANS
        if joined:
            await run_async(db, _SAVE)
        await aio._handle(handler, job)
        undone = joined and _status(conn) == _Status.INERROR
        if undone:
            try:
                await run_async(db, _UNDO)
            except psycopg.Error as e:
                raise job._error or e
        state = _own(job, undone)
        done.append(Done(job, state or _state(job, await run_async(db, _verdict(job))), job._error))


def _status(conn: Any) -> _Status:
    status: _Status = conn.info.transaction_status
    return status


def _own(job: BaseJob[Any], undone: bool) -> str | None:
    """What the job's own ack made of it: lost, where the handler did not say that its transaction failed."""
    if not job._acked or job._error is not None:
        return None
    return "lost" if undone else "completed"


def _verdict(job: BaseJob[Any]) -> _calls.Call[Any]:
    error = job._error
    if error is None:
        return _calls.ack(job.id, job.token, job._result)
    if isinstance(error, Snooze):
        return _calls.release(job.id, job.token, interval(error.pause))
    after = interval(error.pause) if isinstance(error, RetryAfter) else None
    return _calls.nack(job.id, job.token, describe(error), not isinstance(error, Discard), after)


def _state(job: BaseJob[Any], answer: bool | str | None) -> str:
    if isinstance(answer, str):
        return answer
    if not answer:
        return "lost"
    return "completed" if job._error is None else "released"


def jobs(db: DB, queue: str) -> list[dict[str, Any]]:
    """The unfinished jobs of a queue as rows of oq_jobs, ids ascending: what was enqueued."""
    return run(db, _unfinished(queue))


async def jobs_async(db: aio.AsyncDB, queue: str) -> list[dict[str, Any]]:
    """:func:`jobs` for asyncio."""
    return await run_async(db, _unfinished(queue))


def _unfinished(queue: str) -> _calls.Call[list[dict[str, Any]]]:
    return _calls.Call(
        "select * from oq_jobs where queue_name = %s"
        " and state in ('ready', 'scheduled', 'waiting', 'leased') order by job_id",
        [queue],
        list,
        dict_row,
    )
