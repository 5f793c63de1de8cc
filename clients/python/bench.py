#!/usr/bin/python3
"""Measures the library on DATABASE_URL, in a queue of its own, and prints JSON.

bench.py throughput|throughput-asyncio [jobs] [concurrency] [batch]
    {"jobs", "seconds"}: handlers that do nothing
bench.py latency|latency-asyncio [jobs]
    {"jobs", "p50_ms", "p99_ms"}: from the commit to the handler of a worker that sleeps
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import psycopg

import openqueue
from openqueue import aio

URL = os.environ["DATABASE_URL"]
QUEUE = f"bench.python.{os.getpid()}"


class Count:
    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.done = 0
        self.first = self.last = 0.0
        self.worker: Any = None

    def handle(self, job: openqueue.Job) -> None:
        self.first = self.first or time.monotonic()

    async def handle_async(self, job: aio.Job) -> None:
        self.first = self.first or time.monotonic()

    def observe(self, _: Any) -> None:
        self.done += 1
        if self.done == self.jobs:
            self.last = time.monotonic()
            self.worker.stop()


def throughput(
    db: Any, kind: str, jobs: int = 50_000, concurrency: int = 16, batch: int = 100
) -> dict[str, float]:
    for i in range(0, jobs, 10_000):
        openqueue.enqueue_bulk(db, QUEUE, [{"n": n} for n in range(i, min(i + 10_000, jobs))])
    count = Count(jobs)
    options: dict[str, Any] = {
        "concurrency": concurrency,
        "batch": batch,
        "observe": count.observe,
    }
    if kind == "asyncio":
        count.worker = aio.Worker(URL, QUEUE, count.handle_async, **options)
        asyncio.run(count.worker.run())
    else:
        count.worker = openqueue.Worker(URL, QUEUE, count.handle, **options)
        count.worker.run()
    return {"jobs": jobs, "seconds": count.last - count.first}


def latency(db: Any, kind: str, jobs: int = 300) -> dict[str, float]:
    arrived = threading.Event()
    at = 0.0

    def handle(job: Any) -> None:
        nonlocal at
        at = time.monotonic()
        arrived.set()

    async def handle_async(job: Any) -> None:
        handle(job)

    worker: Any
    if kind == "asyncio":
        worker = aio.Worker(URL, QUEUE, handle_async, concurrency=1)
        thread = threading.Thread(target=lambda: asyncio.run(worker.run()), daemon=True)
    else:
        worker = openqueue.Worker(URL, QUEUE, handle, concurrency=1)
        thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    took = []
    previous = 0
    for i in range(jobs + 10):
        # Until it sleeps: somebody listens, and nothing is left to ack.
        while db.execute(
            "select exists (select from oq_get(%s) where state <> 'completed') or not exists (select"
            " from pg_locks where locktype = 'advisory' and mode = 'ShareLock' and objsubid = 2)",
            [previous],
        ).fetchone()[0]:
            time.sleep(0.002)
        arrived.clear()
        db.execute("begin")
        previous = openqueue.enqueue(db, QUEUE, {"i": i})
        sent = time.monotonic()
        db.execute("commit")
        arrived.wait()
        if i >= 10:  # The first ones warm up.
            took.append((at - sent) * 1000)
    worker.stop()
    thread.join()
    took.sort()
    return {
        "jobs": jobs,
        "p50_ms": round(took[len(took) // 2], 3),
        "p99_ms": round(took[len(took) * 99 // 100], 3),
    }


if __name__ == "__main__":
    what, _, kind = (sys.argv[1:2] or ["throughput"])[0].partition("-")
    with psycopg.connect(URL, autocommit=True) as db:
        measured = {"throughput": throughput, "latency": latency}[what](
            db, kind, *map(int, sys.argv[2:])
        )
        db.execute("select oq_drop_queue(%s, true)", [QUEUE])
    print(json.dumps(measured))
