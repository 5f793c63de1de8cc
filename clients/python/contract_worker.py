#!/usr/bin/python3
"""Does with the library what the harness of the contract says: see clients/README.md.

With the argument asyncio by openqueue.aio, without by threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import psycopg

import openqueue
from openqueue import aio

URL = os.environ["DATABASE_URL"]
POOLER = os.environ.get("CONTRACT_POOLER") == "transaction"
PREPARE = None if POOLER else 5

_output = threading.Lock()


def say(event: str, **fields: Any) -> None:
    with _output:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


@dataclass
class Payload:
    do: str
    result: Any = None
    text: str = ""
    error: str = ""
    times: int = 0
    ms: int = 0
    progress: Any = None
    seconds: int = 0
    queue: str = ""

    @classmethod
    def decode(cls, value: Any) -> Payload:
        payload = cls(**value)
        if not isinstance(payload.do, str):
            raise TypeError(f"do is no word: {payload.do!r}")
        return payload


def fails(job: Any, p: Payload) -> None:
    """What the words that raise raise."""
    if p.do == "fail" and job.attempt <= p.times:
        raise openqueue.Failed(p.error)
    if p.do == "panic":
        raise AssertionError(p.error)
    if p.do == "snooze":
        raise openqueue.Snooze(p.seconds)
    if p.do == "discard":
        raise openqueue.Discard(p.error)
    if p.do == "retry_after":
        raise openqueue.RetryAfter(p.seconds, p.error)
    if p.do == "die":
        os._exit(9)


def returns(job: Any, p: Payload) -> Any:
    if p.do == "return":
        return p.result
    if p.do == "echo":
        return {
            "text": p.text if len(p.text) <= 1000 else None,
            "sha256": hashlib.sha256(p.text.encode()).hexdigest(),
            "characters": len(p.text),
            "headers": job.headers or None,
        }
    if p.do not in ("fail", "sleep", "stubborn", "transact"):
        raise ValueError(f"no such word: {p.do!r}")
    return None


def handle(job: openqueue.Job[Payload]) -> Any:
    p = job.payload
    fails(job, p)
    if p.do == "sleep":
        job.sleep(p.ms / 1000)
    elif p.do == "stubborn":
        time.sleep(p.ms / 1000)
    elif p.do == "hold":
        if p.progress is not None:
            job.progress(p.progress)
        job.sleep()
    elif p.do == "transact":
        with psycopg.connect(URL, prepare_threshold=PREPARE) as conn:
            openqueue.enqueue(conn, p.queue, {"by": job.id})
            time.sleep(p.ms / 1000)
            job.ack(conn)
    return returns(job, p)


async def handle_async(job: aio.Job[Payload]) -> Any:
    p = job.payload
    fails(job, p)
    if p.do == "sleep":
        await asyncio.sleep(p.ms / 1000)
    elif p.do == "stubborn":
        deadline = time.monotonic() + p.ms / 1000
        while (left := deadline - time.monotonic()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                pass
    elif p.do == "hold":
        if p.progress is not None:
            await job.progress(p.progress)
        await asyncio.Event().wait()
    elif p.do == "transact":
        # Shielded: that the ack is refused is what is to be seen.
        await asyncio.shield(asyncio.ensure_future(transact(job, p)))
    return returns(job, p)


async def transact(job: aio.Job[Payload], p: Payload) -> None:
    conn = await psycopg.AsyncConnection.connect(URL, prepare_threshold=PREPARE)
    async with conn:
        await aio.enqueue(conn, p.queue, {"by": job.id})
        await asyncio.sleep(p.ms / 1000)
        await job.ack(conn)


def started(job: Any) -> None:
    say("started", job_id=str(job.id), lease_token=str(job.token), attempt=job.attempt)


def ended(job: Any, error: BaseException | None) -> None:
    fields: dict[str, Any] = {"how": "done"}
    if isinstance(error, (openqueue.Stopped, asyncio.CancelledError)):
        fields = {"how": "stopped", "why": job.why}
    elif error is not None:
        fields = {"how": "failed"}
        if openqueue.sqlstate(error):
            fields["sqlstate"] = openqueue.sqlstate(error)
    say("ended", job_id=str(job.id), attempt=job.attempt, **fields)


def report(handler: openqueue.Handler[Any]) -> openqueue.Handler[Any]:
    def reporting(job: openqueue.Job[Any]) -> Any:
        started(job)
        error: BaseException | None = None
        try:
            return handler(job)
        except BaseException as e:
            error = e
            raise
        finally:
            ended(job, error)

    return reporting


def report_async(handler: aio.Handler[Any]) -> aio.Handler[Any]:
    async def reporting(job: aio.Job[Any]) -> Any:
        started(job)
        error: BaseException | None = None
        try:
            return await handler(job)
        except BaseException as e:
            error = e
            raise
        finally:
            ended(job, error)

    return reporting


def new_jobs(command: dict[str, Any]) -> list[dict[str, Any]]:
    jobs = []
    for job in command["jobs"] * max(command.get("times") or 1, 1):
        job = dict(job)
        job.update(job.pop("options", {}))
        if n := job.pop("text_bytes", 0):
            job["payload"] = dict(job["payload"], text="x" * n)
        jobs.append(job)
    return jobs


def enqueue(command: dict[str, Any]) -> list[int]:
    jobs = new_jobs(command)
    how = command.get("transaction")
    with psycopg.connect(URL, autocommit=not how, prepare_threshold=PREPARE) as conn:
        if command.get("many"):
            ids = [made.job_id for made in openqueue.enqueue_many(conn, jobs)]
        else:
            ids = []
            for job in jobs:
                queue, payload = job.pop("queue_name"), job.pop("payload", {})
                ids.append(openqueue.enqueue(conn, queue, payload, **job))
        if how == "rollback":
            conn.rollback()
        return ids


async def enqueue_async(command: dict[str, Any]) -> list[int]:
    jobs = new_jobs(command)
    how = command.get("transaction")
    conn = await psycopg.AsyncConnection.connect(
        URL, autocommit=not how, prepare_threshold=PREPARE
    )
    async with conn:
        if command.get("many"):
            return_ids = [made.job_id for made in await aio.enqueue_many(conn, jobs)]
        else:
            return_ids = []
            for job in jobs:
                queue, payload = job.pop("queue_name"), job.pop("payload", {})
                return_ids.append(await aio.enqueue(conn, queue, payload, **job))
        if how == "rollback":
            await conn.rollback()
        return return_ids


def settings(command: dict[str, Any]) -> dict[str, Any]:
    names = {
        "worker_id": "worker_id",
        "concurrency": "concurrency",
        "batch": "batch",
        "lease_seconds": "lease_seconds",
        "poll_seconds": "poll",
        "drain_seconds": "drain",
        "timeout_seconds": "timeout",
    }
    given = {ours: command[name] for name, ours in names.items() if command.get(name) is not None}
    return {"pooler": POOLER, **given}


class Bench:
    """Counts what a worker does whose handler does nothing."""

    def __init__(self, command: dict[str, Any]) -> None:
        self.count = command["count"]
        self.done = 0
        self.first = self.last = 0.0
        self.worker: Any = None

    def handle(self, job: openqueue.Job[Any]) -> None:
        self.first = self.first or time.monotonic()

    async def handle_async(self, job: aio.Job[Any]) -> None:
        self.first = self.first or time.monotonic()

    def observe(self, end: Any) -> None:
        self.done += end.state == "acked"
        if self.done == self.count:
            self.last = time.monotonic()
            self.worker.stop()

    def say(self) -> None:
        say("benched", jobs=self.count, seconds=self.last - self.first)


def lines(take: Any, end: Any) -> None:
    """Reads the commands, in a thread of its own; the end of input is that of the work."""

    def read() -> None:
        for line in sys.stdin:
            take(json.loads(line))
        end()

    threading.Thread(target=read, daemon=True).start()


def main() -> None:
    """By threads: the main one works, a second one reads, and enqueues."""
    commands: list[dict[str, Any]] = []
    change = threading.Condition()
    over = threading.Event()
    worker: openqueue.Worker[Any] | None = None

    def end(*_: Any) -> None:
        over.set()
        if worker is not None:
            worker.stop()
        with change:
            change.notify_all()

    def take(command: dict[str, Any]) -> None:
        if command["do"] == "enqueue":
            try:
                say("enqueued", job_ids=[str(i) for i in enqueue(command)])
            except (psycopg.Error, OSError) as e:
                say("error", sqlstate=openqueue.sqlstate(e), message=str(e))
            return
        with change:
            commands.append(command)
            change.notify_all()

    def terminate(*_: Any) -> None:
        # A signal handler must not wait for a lock that its thread may hold.
        threading.Thread(target=end).start()

    signal.signal(signal.SIGTERM, terminate)
    lines(take, end)
    while not over.is_set():
        with change:
            while not commands and not over.is_set():
                change.wait()
            command = commands.pop(0) if commands else None
        if command is None:
            continue
        if command["do"] == "bench":
            bench = Bench(command)
            worker = bench.worker = openqueue.Worker(
                URL, command["queue"], bench.handle, observe=bench.observe, **settings(command)
            )
            worker.run(signals=())
            bench.say()
            continue
        worker = openqueue.Worker(
            URL,
            command["queue"],
            handle,
            decode=Payload.decode,
            middleware=[report],
            **settings(command),
        )
        say("working")
        worker.run()
        break
    say("stopped")


async def main_async() -> None:
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    working: asyncio.Task[None] | None = None
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, lambda: commands.put_nowait(None))
    lines(
        lambda command: loop.call_soon_threadsafe(commands.put_nowait, command),
        lambda: loop.call_soon_threadsafe(commands.put_nowait, None),
    )
    while not over.is_set():
        command = await commands.get()
        if command is None:
            break
        if command["do"] == "enqueue":
            try:
                say("enqueued", job_ids=[str(i) for i in await enqueue_async(command)])
            except (psycopg.Error, OSError) as e:
                say("error", sqlstate=openqueue.sqlstate(e), message=str(e))
        elif command["do"] == "bench":
            bench = Bench(command)
            bench.worker = aio.Worker(
                URL, command["queue"], bench.handle_async, observe=bench.observe, **settings(command)
            )
            await bench.worker.run()
            bench.say()
        else:
            worker = aio.Worker(
                URL,
                command["queue"],
                handle_async,
                decode=Payload.decode,
                middleware=[report_async],
                **settings(command),
            )
            working = asyncio.ensure_future(worker.run())
            working.add_done_callback(lambda _: commands.put_nowait(None))
            say("working")
    if working is not None:
        working.cancel()  # A drain.
        try:
            await working
        except asyncio.CancelledError:
            pass
    say("stopped")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    if sys.argv[1:] == ["asyncio"]:
        asyncio.run(main_async())
    else:
        main()
