"""Not run: mypy has to find each mistake that is marked, and no other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import openqueue
from openqueue import aio, testing


@dataclass
class Mail:
    to: str


def mail(value: Any) -> Mail:
    return Mail(**value)


def number(value: Any) -> int:
    return int(value)


def send(job: openqueue.Job[Mail]) -> str:
    return job.payload.to


def any_job(job: openqueue.Job[Any]) -> None:
    job.payload.whatever


async def send_async(job: aio.Job[Mail]) -> str:
    job.payload.two  # type: ignore[attr-defined]
    return job.payload.to


def timed(handler: openqueue.Handler[Any]) -> openqueue.Handler[Any]:
    return handler


def observe(end: openqueue.Outcome[openqueue.Job[Mail]]) -> None:
    print(end.job.payload.to, end.state)


def use(conn: psycopg.Connection[Any], pool: ConnectionPool, async_pool: AsyncConnectionPool) -> None:
    openqueue.Worker(pool, "q", send, decode=mail, middleware=[timed, openqueue.timeout(5)], observe=observe)
    openqueue.Worker("", "q", send, decode=lambda value: Mail(**value))
    openqueue.Worker(conn, "q", any_job)
    openqueue.Worker("", "q", send, decode=number)  # type: ignore[misc]
    openqueue.Worker("", "q", send_async, decode=mail).run()  # type: ignore[arg-type]
    aio.Worker(async_pool, "q", send_async, decode=mail, middleware=[aio.timeout(5)])
    aio.Worker("", "q", send, decode=mail)  # type: ignore[arg-type]
    both = openqueue.Worker("", "q", send, decode=mail), openqueue.Worker("", "q", any_job)
    openqueue.run(*both, signals=())
    openqueue.run(aio.Worker("", "q", send_async, decode=mail))  # type: ignore[arg-type]
    job: int = openqueue.enqueue(conn, "q", Mail("x"), priority=1, delay="1 hour")
    openqueue.enqueue(pool, "q", unique_mode="wait")  # type: ignore[arg-type]
    openqueue.enqueue(conn, "q", priorty=job)  # type: ignore[call-arg]
    openqueue.enqueue(async_pool, "q")  # type: ignore[arg-type]
    openqueue.enqueue_many(conn, [{"queue_name": "q", "payload": 1}])
    for done in testing.drain(conn, "q", send, decode=mail):
        done.job.payload.to
