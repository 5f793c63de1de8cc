"""The worker's engine, on asyncio; openqueue.Worker runs its handlers in threads, openqueue.aio.Worker
in tasks.

One connection acks and leases in one call, one listens while there is nothing to do. Two more are
made when they are needed: for heartbeats, and for what failed or is given back. None of these calls may
wait for another one that waits for a lock.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import psycopg

from ._calls import COLUMNS, encode, interval
from ._errors import (
    Abandoned,
    ArgumentError,
    Discard,
    RetryAfter,
    Snooze,
    brief,
    describe,
    headline,
    locked,
    refused,
    unanswered,
    unfit,
)
from ._job import BaseJob, Why
from ._session import Connector, ConnectionFailed, Row, Session, backoff, connector, no_session

J = TypeVar("J", bound="BaseJob[Any]")
W = TypeVar("W", bound="BaseWorker[Any]")

# A row that another transaction holds is waited for so long and no longer, by a setting of the statement's
# own: behind a pooler a session has none.
_NO_WAIT = "set_config('lock_timeout', '200', true) soon"
_NEXT = (
    f"select {COLUMNS} from {_NO_WAIT} cross join lateral oq_next($1::text, $2::text, $3::int, $4::int,"
    " $5::bigint[], case when soon is not null then $6::bigint[] end)"
)
# Results go by oq_ack_many; lateral on its count makes it come first, in the same transaction.
_RESULTS_NEXT = (
    f"select j.* from {_NO_WAIT} cross join lateral (select count(*) as n from oq_ack_many($5::bigint[],"
    " case when soon is not null then $6::bigint[] end, $7::jsonb[])) a"
    f" cross join lateral (select {COLUMNS} from oq_next($1::text, $2::text, $3::int,"
    " $4::int + least(a.n, 0)::int)) j"
)
# Nothing but a lease: should its commit be lost in a crash, the jobs are only done again.
_LEASE = (
    f"select {COLUMNS} from set_config('synchronous_commit', 'off', true) c,"
    " oq_lease($1::text, $2::text, $3::int, $4::int)"
)
_ACK = (
    f"select id from {_NO_WAIT} cross join lateral"
    " oq_ack_many($1::bigint[], case when soon is not null then $2::bigint[] end) id"
)
_ACK_RESULTS = (
    f"select id from {_NO_WAIT} cross join lateral"
    " oq_ack_many($1::bigint[], case when soon is not null then $2::bigint[] end, $3::jsonb[]) id"
)
_NACK = (
    f"select u.n, oq_nack(u.id, u.token, u.error, u.retry, u.after) from {_NO_WAIT} cross join"
    " unnest($1::bigint[], $2::bigint[], $3::text[], $4::boolean[], $5::interval[])"
    " with ordinality u(id, token, error, retry, after, n)"
)
_RELEASE = (
    f"select u.n, oq_release(u.id, u.token, u.delay) from {_NO_WAIT} cross join"
    " unnest($1::bigint[], $2::bigint[], $3::interval[]) with ordinality u(id, token, delay, n)"
)
_BEATS = (
    "select status from set_config('lock_timeout', $4, true) soon cross join lateral"
    " oq_heartbeat_many($1::bigint[], $2::bigint[], case when soon is not null then $3::int end)"
)
# No longer: the heartbeats of all other jobs wait for it.
_PROGRESS = (
    "select oq_heartbeat($1::bigint, $2::bigint, $3::int, $4::jsonb) from set_config('lock_timeout', '10', true)"
)
_LISTEN = "select oq_listen($1::text)"
_UNLISTEN = "select oq_unlisten($1::text)"

PROBE = 15.0  # seconds: a listening session is tried, and made again where it died without a word
LINGER_IDLE = 0.001  # while some still run, a call waits so long for more of them to end
LINGER_ACK = 0.005
GRACE = 5.0  # for handlers to return once they were told to
LAST = 10.0  # for all calls of the end together, once no handler runs; or timeout, if that is less
MANY = 500  # reports in one call


class Outcome(NamedTuple, Generic[J]):
    """What became of a job in a worker, for ``observe``."""

    job: J
    """With how long its handler took, in ``seconds``."""
    state: Literal["acked", "scheduled", "ready", "dead", "expired", "released", "lost", "cancelled"]
    """Where it went: acked means done; scheduled, ready, dead and expired that the attempt failed.

    acked: the server took the ack, of a lease that was good as far as the worker knew.
    """
    error: BaseException | None
    """What the handler raised."""


@dataclass
class _Report(Generic[J]):
    job: J
    how: Literal["ack", "nack", "release"]
    error: str = ""
    retry: bool = True
    pause: str | None = None
    raised: BaseException | None = None
    tries: int = 0


def numbers(values: Iterable[int]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def texts(values: Iterable[str | None]) -> str:
    return (
        "{"
        + ",".join(
            "NULL"
            if v is None
            else '"' + v.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "") + '"'
            for v in values
        )
        + "}"
    )


def caught(signals: Sequence[int], workers: Sequence[BaseWorker[Any]]) -> Callable[[], None]:
    """The first signal drains the workers; the second does what it would have done without them."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in signals}

    def give_back(number: int) -> None:
        if number in before:
            loop.remove_signal_handler(number)
            signal.signal(number, before.pop(number) or signal.SIG_DFL)

    def drain(number: int) -> None:
        give_back(number)
        for worker in workers:
            worker._log.info("worker %s drains on %s", worker.worker_id, signal.Signals(number).name)
            worker.stop()

    def restore() -> None:
        for number in list(before):
            give_back(number)

    for number in signals:
        loop.add_signal_handler(number, drain, number)
    return restore


def barely(sql: str) -> str:
    """The same, for one of many: the others wait meanwhile, and a drain has an end."""
    return sql.replace("'200'", "'10'")


async def together(
    workers: Sequence[W],
    runs: Callable[[W], Coroutine[Any, Any, None]],
    signals: Sequence[int],
) -> None:
    """Runs all of them, until all have ended; one that fails stops the others."""
    if not workers:
        raise ArgumentError("no worker")
    loop = asyncio.get_running_loop()
    failures: list[BaseException] = []

    def ended(task: asyncio.Task[None], worker: W) -> None:
        if not task.cancelled() and (e := task.exception()) is not None:
            failures.append(e)
            worker._died(e)
            for other in workers:
                other.stop()

    tasks = []
    restore = caught(signals, workers)
    try:
        for worker in workers:
            task = loop.create_task(runs(worker))
            task.add_done_callback(lambda task, worker=worker: ended(task, worker))  # type: ignore[misc]
            tasks.append(task)
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.wait(tasks)
            except asyncio.CancelledError:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            raise
        await asyncio.sleep(0)  # For the callbacks of the last.
    finally:
        restore()
    if failures:
        raise failures[0]


def whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def duration(name: str, value: object, zero: bool = False) -> None:
    if not isinstance(value, (int, float)) or not (value > 0 or (zero and value == 0)):
        least = "0 or more" if zero else "more than 0"
        raise ArgumentError(f"{name} {value!r} is no number of seconds, {least}")


class BaseWorker(Generic[J]):
    """What both workers have in common. Times are in seconds."""

    _job_class: ClassVar[Any]

    def __init__(
        self,
        db: Any,
        queue: str,
        handler: Any,
        *,
        worker_id: str | None,
        concurrency: int,
        batch: int | None,
        lease_seconds: int | None,
        poll: float | None,
        drain: float,
        timeout: float,
        pooler: bool,
        decode: Callable[[Any], Any] | None,
        observe: Callable[[Outcome[J]], None] | None,
        logger: logging.Logger | None,
    ) -> None:
        if not queue or not isinstance(queue, str):
            raise ArgumentError(f"queue {queue!r} is no name")
        if not callable(handler):
            raise ArgumentError(f"handler {handler!r} is no function")
        if not whole(concurrency) or concurrency < 1:
            raise ArgumentError(f"concurrency {concurrency!r} is no whole number from 1")
        if batch is not None and not (whole(batch) and 1 <= batch <= 10_000):
            raise ArgumentError(f"batch {batch!r} is no whole number from 1 to 10000")
        if lease_seconds is not None and not (whole(lease_seconds) and 1 <= lease_seconds <= 604_800):
            raise ArgumentError(f"lease_seconds {lease_seconds!r} is no whole number from 1 to 604800")
        if poll is not None:
            duration("poll", poll)
        duration("drain", drain, zero=True)
        duration("timeout", timeout)
        self.queue = queue
        self.worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.concurrency = concurrency
        self.batch = batch or min(concurrency, 10_000)
        self.lease_seconds = lease_seconds
        self.poll = poll or (1.0 if pooler else 5.0)
        self.drain = drain
        self.timeout = timeout
        self.pooler = pooler
        self._connect: Connector = connector(db, timeout)
        self._decode = decode
        self._observe = observe
        self._log = logger or logging.getLogger("openqueue")
        self._most = max(self.concurrency, self.batch)
        self._lasts = float(lease_seconds or 0)  # of a lease; 0 while nobody knows
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ran = False
        self._failure: BaseException | None = None

    # What the two kinds do differently.

    def _open(self) -> None:
        """The loop runs: get ready to handle jobs."""

    def _give(self, jobs: list[J]) -> None:
        """Jobs for handlers, in order."""
        raise NotImplementedError

    def _unstarted(self) -> int:
        raise NotImplementedError

    def _take_back(self) -> list[J]:
        """All jobs that no handler has begun."""
        raise NotImplementedError

    def _tell(self, job: J) -> None:
        """Its handler has to end; job.why says why."""
        raise NotImplementedError

    def _collect(self) -> None:
        """Settle what has ended, where that is not done at once."""

    def _shut(self) -> None:
        """No job will come any more."""

    # From outside.

    def stop(self) -> None:
        """Drains: no job is begun any more, and run() returns when those that run have ended.

        From any thread, and as often as you like.
        """
        self._stopping.set()
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # It was closed this moment.
                pass

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    # The engine.

    async def _run(self, signals: Sequence[int]) -> None:
        if self._ran:
            raise RuntimeError("a worker runs once")
        self._ran = True
        self._loop = loop = asyncio.get_running_loop()
        self._sleeper: asyncio.Future[None] | None = None
        self._signalled = False
        self._active = 0  # given to handlers, and not settled
        self._more_reports = asyncio.Event()
        self._held: dict[tuple[int, int], J] = {}  # by id and token: what is not over
        self._acks: list[J] = []
        self._reports: list[_Report[J]] = []
        self._ack_at = self._idle_at = self._looked_at = 0.0
        self._asleep = self._woken = self._again = self._closed = False
        self._answered = False
        self._wants_wakes = False
        self._listening = False
        self._change = asyncio.Event()
        self._learned = asyncio.Event()  # leases last longer, or shorter, than the last one did
        prepares = not self.pooler
        # A call that was given up, which waits for a lock, must not lease for nobody when it gets it:
        # the server gives up first.
        # Whatever the role's lock_timeout is: an ack waits for whoever holds its row.
        settings = {
            "statement_timeout": str(math.ceil(min(self.timeout * 900, 2**31 - 1))),
            "lock_timeout": "0",
        }
        self._lane = Session(self._connect, "leasing", prepares, settings=settings)
        self._beats = Session(self._connect, "heartbeats", prepares, settings=settings)
        self._out = Session(self._connect, "reports", prepares, settings=settings)
        self._ear = Session(
            self._connect, "listening", prepares, self._nudge, self._change.set, settings
        )

        restore = caught(signals, [self])
        self._open()
        self._reporter = loop.create_task(self._report())
        self._parts = tasks = {loop.create_task(self._beat()), self._reporter}
        if not self.pooler:
            tasks.add(loop.create_task(self._listen()))
        for task in tasks:
            task.add_done_callback(self._broke)
        self._log.info("worker %s works on %s", self.worker_id, self.queue)
        try:
            await self._fetch()
            if self._failure is not None:
                raise self._failure
        finally:
            self._shut()
            # Again and again: a function that connects may swallow it, and psycopg's own does before
            # Python 3.12, when the connection is there at the same moment.
            late = loop.time() + GRACE
            while tasks and loop.time() < late:
                for task in tasks:
                    task.cancel()
                _, tasks = await asyncio.wait(tasks, timeout=0.1)
            for session in (self._lane, self._beats, self._out, self._ear):
                session.drop()
            restore()

    def _broke(self, task: asyncio.Task[None]) -> None:
        """None of the tasks ends by itself: the worker can't go on without it."""
        if not task.cancelled() and (e := task.exception()) is not None:
            self._failure = self._failure or e
            self._log.error("worker %s ends", self.worker_id, exc_info=e)
            self.stop()

    def _died(self, error: BaseException) -> None:
        """The worker has ended by an error, and whoever began it does not look now."""
        if self._failure is not error:
            self._failure = error
            self._log.error("worker %s ends", self.worker_id, exc_info=error)

    def _wake(self) -> None:
        self._signalled = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def _nudge(self) -> None:
        """A notification: there may be work."""
        self._woken, self._asleep = True, False
        self._wake()

    def _plan(self, now: float) -> tuple[bool, bool, float]:
        """Whether to lease and to ack now, or else when to look again."""
        unstarted = self._unstarted()
        running = self._active - unstarted
        wait = 3600.0
        # Who can't tell how jobs end begins no more of them.
        untold = len(self._held) - self._active - len(self._acks)
        hungry = unstarted == 0 and running < self.concurrency and untold <= self._most and not self._closed
        if hungry:
            since = now - self._idle_at
            if self._asleep:
                poll = self.poll if self.pooler or self._listening else min(self.poll, 1.0)
                wait = poll - (now - self._looked_at)
                if wait <= 0:
                    return True, True, 0
            elif (
                running == 0
                or (self._acks and self._most - self._active >= (self.batch + 1) // 2)
                or since >= LINGER_IDLE
            ):
                return True, True, 0
            else:
                wait = LINGER_IDLE - since
        if self._acks:
            since = now - self._ack_at
            if self._active == 0 or len(self._acks) >= self.batch or since >= LINGER_ACK:
                return hungry, True, 0
            wait = min(wait, LINGER_ACK - since)
        return False, False, wait

    async def _pause(self, seconds: float) -> None:
        """Until _wake, which may have been already, or for so long."""
        if self._signalled:
            return
        loop = asyncio.get_running_loop()
        self._sleeper = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._sleeper
        finally:
            self._sleeper = None
            timer.cancel()

    async def _fetch(self) -> None:
        failures = 0
        while not self.stopping:
            self._signalled = False
            self._collect()
            lease, ack, wait = self._plan(time.monotonic())
            if not lease and not ack:
                await self._pause(wait)
                continue
            try:
                if not self._lane.connected and not self._held and not await self._reach():
                    break
                await self._turn(lease)
                failures = 0
            except psycopg.Error as e:
                if not self._answered and refused(e):
                    await self._end()
                    raise
                if not self._answered and (cause := e.__cause__) is not None and no_session(cause):
                    await self._end()
                    raise cause from None
                self._log.warning("worker %s: a call failed: %s", self.worker_id, brief(e))
                deadline = time.monotonic() + backoff(failures)
                failures += 1
                while not self.stopping and (left := deadline - time.monotonic()) > 0:
                    self._signalled = False
                    await self._pause(left)
                    self._collect()
        self._log.info("worker %s drains", self.worker_id)
        await self._end()

    async def _reach(self) -> bool:
        """Connects; false where the worker is stopped before, which holds nothing and need not wait."""

        def connected(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                task.exception()  # It is retrieved, whether anybody still waits or not.
            self._wake()

        connecting = asyncio.get_running_loop().create_task(self._lane.connect(self.timeout))
        self._parts.add(connecting)
        connecting.add_done_callback(connected)
        while not connecting.done():
            if self.stopping:
                return False
            self._signalled = False
            await self._pause(3600)
        self._parts.discard(connecting)
        connecting.result()
        return True

    async def _turn(self, lease: bool) -> None:
        """Acks what is done and leases what there is room for: one round trip, one commit."""
        acks, self._acks = self._acks, []
        want = min(self.batch, self._most - self._active)
        self._woken = False
        rows: list[Row] = []
        try:
            # Whose lease is over may be somebody else's: oq_next would not say which. And a server that crashed, or
            # took over, may not know of a lease that was not waited for.
            since = self._lane.since
            asked = [j for j in acks if not lease or j._clock() > j._lease or j._since < since]
            if asked:
                await self._ack(self._lane, asked)
                acks = [job for job in acks if (job.id, job.token) in self._held]
            if lease:
                rows = await self._exchange(acks, want)
        except BaseException as e:
            if acks and (refused(e) or locked(e)):
                # One of them is at fault, by its result or as somebody holds its row: each for itself, while
                # others are leased and acked.
                self._report_acks(acks)
                return
            self._keep(acks, e)
            raise
        self._answered = True
        for job in acks:
            self._done(job, "acked")
        if not lease:
            return
        self._looked_at = self._idle_at = time.monotonic()
        jobs: list[J] = []
        for row in rows:
            new: J = self._job_class(row, self.queue, self._decode, self)
            new._since, new._lease = self._lane.sent, new._lasts()
            self._held[new.id, new.token] = new
            jobs.append(new)
        if jobs:
            lasts = self.lease_seconds or jobs[0]._lease
            if abs(lasts - self._lasts) > lasts / 10:
                self._learned.set()
            self._lasts = lasts
            self._active += len(jobs)
            self._give(jobs)
        self._asleep = not jobs and not self._woken
        # Listening is for the idle. One job now and then is taken without leaving off.
        full = self._active >= self._most
        if self._wants_wakes and jobs and (self._again or full):
            self._wants_wakes = False
            self._change.set()
        elif not jobs and not self._wants_wakes:
            self._wants_wakes = True
            self._change.set()
        self._again = bool(jobs)

    async def _exchange(self, acks: list[J], want: int) -> list[Row]:
        lease = [self.queue, self.worker_id, self.lease_seconds, want]
        if not acks:
            return await self._lane.call(_LEASE, lease, self.timeout)
        leases = self._leases(acks)
        sql = _NEXT if len(leases) == 2 else _RESULTS_NEXT
        return await self._lane.call(sql, [*lease, *leases], self.timeout)

    def _leases(self, acks: list[J]) -> list[str]:
        """Ids, tokens, and results where there is one."""
        leases = [numbers(j.id for j in acks), numbers(j.token for j in acks)]
        if any(j._result is not None for j in acks):
            leases.append(texts(j._result for j in acks))
        return leases

    async def _ack(self, session: Session, acks: list[J], one: bool = False) -> None:
        """Acks, and asks which of the leases were lost."""
        leases = self._leases(acks)
        sql = _ACK if len(leases) == 2 else _ACK_RESULTS
        if one:
            sql = barely(sql)
        done = {int(row[0] or 0) for row in await session.call(sql, leases, self.timeout)}
        # One job may be here by two leases: the later one counts.
        for job in sorted(acks, key=lambda job: job.token, reverse=True):
            # What was acked by a call whose answer never came is not found again.
            before = job._sent and job._clock() <= job._lease
            self._done(job, "acked" if job.id in done or before else "lost")
            done.discard(job.id)

    def _keep(self, acks: list[J], error: BaseException) -> None:
        """Acks that the server did not answer wait for the next call, as long as there is hope."""
        for job in acks:
            job._sent = job._sent or unanswered(error)
            # An ack is accepted after the lease's end too, while nobody has the job.
            if job._clock() > job._lease + 60:
                self._done(job, "lost")
            else:
                self._push_ack(job)

    def _push_ack(self, job: J) -> None:
        if not self._acks:
            self._ack_at = time.monotonic()
        self._acks.append(job)

    def _report_acks(self, acks: list[J]) -> None:
        for job in acks:
            self._put_report(_Report(job, "ack"))

    def _done(
        self,
        job: J,
        state: Any,
        error: BaseException | None = None,
    ) -> None:
        """The end of a job in this worker."""
        job._over = True
        self._held.pop((job.id, job.token), None)
        level = logging.DEBUG
        if state == "dead":
            level = logging.ERROR
        elif state == "lost" or (error is not None and state != "released"):
            level = logging.WARNING
        if self._log.isEnabledFor(level):
            why = "" if error is None else f": {headline(error)}"
            self._log.log(
                level,
                "job %d of %s, attempt %d: %s%s",
                job.id,
                job.queue,
                job.attempt,
                state,
                why,
                extra={"job_id": job.id, "state": state, "seconds": job.seconds},
            )
        if self._observe is not None:
            try:
                self._observe(Outcome(job, state, error))
            except Exception:
                self._log.exception("observe failed")

    def _settle(self, job: J) -> None:
        """A handler has ended: its outcome goes to the server."""
        self._idle_at = time.monotonic()
        self._active -= 1
        job._over = True
        error = job._error
        if job.why in ("lost", "cancelled"):
            self._done(job, job.why, error)
        elif error is None and job._acked:
            self._done(job, "acked")
        elif error is None:
            self._push_ack(job)
        elif job.why == "drain":
            self._put_report(_Report(job, "release", raised=error))
        else:
            self._fail(job, error)

    def _fail(self, job: J, error: BaseException) -> None:
        try:
            if isinstance(error, Snooze):
                report = _Report(job, "release", pause=interval(error.pause), raised=error)
            elif isinstance(error, RetryAfter):
                pause = interval(error.pause)
                report = _Report(job, "nack", describe(error), pause=pause, raised=error)
            else:
                retry = not isinstance(error, Discard)
                report = _Report(job, "nack", describe(error), retry, raised=error)
        except ArgumentError as e:  # A pause that is none.
            report = _Report(job, "nack", describe(e), raised=e)
        self._put_report(report)

    def _put_report(self, report: _Report[J]) -> None:
        self._reports.append(report)
        self._more_reports.set()

    async def _report(self) -> None:
        """Tells the server of failures, of what is given back, and of acks that have to wait, many in a call."""
        failures = 0
        while True:
            await self._more_reports.wait()
            self._more_reports.clear()
            while self._reports:
                how = self._reports[0].how
                reports: list[_Report[J]] = []
                rest: list[_Report[J]] = []
                for report in self._reports:
                    now = report.how == how and len(reports) < MANY
                    (reports if now else rest).append(report)
                self._reports = rest
                try:
                    await self._send(reports)
                    failures = 0
                except psycopg.Error as e:
                    judged = self._judged(how, e)
                    if len(reports) > 1 and (refused(e) or locked(e)):
                        for report in reports:
                            await self._send_one(report)
                    elif judged:
                        self._refused(reports[0], e)
                    else:
                        self._hope(reports, e)
                    if not judged:
                        self._log.warning("worker %s: a report failed: %s", self.worker_id, brief(e))
                        # Heartbeats can't extend the lease of what is locked: it may be reaped soon afterwards.
                        await asyncio.sleep(backoff(1 if locked(e) else failures))
                        failures += 1
                finally:
                    self._wake()

    def _judged(self, how: str, error: BaseException) -> bool:
        """Whether trying again makes no sense."""
        return refused(error) and (how != "ack" or unfit(error))

    async def _send_one(self, report: _Report[J]) -> None:
        try:
            await self._send([report], one=True)
        except psycopg.Error as e:
            if self._judged(report.how, e):
                self._refused(report, e)
            else:
                self._hope([report], e)

    def _refused(self, report: _Report[J], error: BaseException) -> None:
        """An ack, and a pause that is no interval, is a failure like others; else the lease has to run out."""
        if report.how == "ack":
            self._fail(report.job, error)
        elif report.pause is None:
            self._give_up(report, error)
        else:
            failed = _Report(report.job, "nack", describe(error), raised=report.raised or error)
            self._reports.append(failed)

    def _hope(self, reports: list[_Report[J]], error: BaseException) -> None:
        """Reports that found no server are tried again while the lease lasts; acks longer, as _keep says."""
        for report in reports:
            job, more = report.job, 60 if report.how == "ack" else 0
            job._sent = job._sent or unanswered(error)
            if job._clock() > job._lease + more or (self._closed and report.tries >= 8):
                self._give_up(report, error)
            else:
                report.tries += not locked(error)
                self._reports.append(report)

    def _give_up(self, report: _Report[J], error: BaseException) -> None:
        self._log.error("job %d: its end could not be reported: %s", report.job.id, error)
        self._done(report.job, "lost", report.raised)

    async def _send(self, reports: list[_Report[J]], one: bool = False) -> None:
        reports.sort(key=lambda r: r.job.id)
        if reports[0].how == "ack":
            await self._ack(self._out, [r.job for r in reports], one)
            return
        release = reports[0].how == "release"
        sql = _RELEASE if release else _NACK
        if one:
            sql = barely(sql)
        args = [
            numbers(r.job.id for r in reports),
            numbers(r.job.token for r in reports),
        ]
        pauses = texts(r.pause for r in reports)
        if release:
            rows = await self._out.call(sql, [*args, pauses], self.timeout)
        else:
            errors = texts(r.error for r in reports)
            retries = "{" + ",".join("t" if r.retry else "f" for r in reports) + "}"
            rows = await self._out.call(sql, [*args, errors, retries, pauses], self.timeout)
        for n, answer in rows:
            report = reports[int(n or 0) - 1]
            if release:
                state = "released" if answer == b"t" else "lost"
            else:
                state = "lost" if answer is None else answer.decode()
            self._done(report.job, state, report.raised)

    async def _beat(self) -> None:
        """Keeps the leases of all that is held, begun or not, done and not told: each once a third of it is over.

        How long leases of the queue last may change; the server extends them by what holds then. One that
        failed is soon tried again: it may have taken a third of the lease to fail.
        """
        failed = False
        while True:
            lasts = min([self._lasts or 3600.0, *(job._lease for job in self._held.values())])
            try:
                async with asyncio.timeout(lasts / (30 if failed else 6)):
                    await self._learned.wait()
            except TimeoutError:
                pass
            self._learned.clear()
            failed = False
            now = time.monotonic()
            due: list[J] = []
            for job in list(self._held.values()):
                age = now - job._since
                if job._acked or age < job._lease / 3:
                    continue
                if age > job._lease:  # Not even a heartbeat went through.
                    self._lose(job, "lost")
                else:
                    due.append(job)
            try:
                for i in range(0, len(due), 1000):
                    await self._beat_all(due[i : i + 1000])
            except psycopg.Error as e:
                failed = True
                self._log.warning("worker %s: a heartbeat failed: %s", self.worker_id, brief(e))

    def _beat_timeout(self) -> float:
        """A heartbeat that comes too late is none: the next one goes over a new connection."""
        return min(self.timeout, self._lasts / 3)

    async def _beat_all(self, jobs: list[J]) -> None:
        try:
            await self._beat_many(jobs, 200)
        except psycopg.errors.LockNotAvailable:
            # Open transactions are about to end some of them: the others don't wait for these, however many
            # they are.
            for job in jobs if len(jobs) > 1 else []:
                try:
                    await self._beat_many([job], 10)
                except psycopg.errors.LockNotAvailable:
                    pass

    async def _beat_many(self, jobs: list[J], wait: int) -> None:
        """Waits for each row that another transaction holds as many milliseconds as wait says."""
        sent = time.monotonic()
        ids, tokens = numbers(j.id for j in jobs), numbers(j.token for j in jobs)
        rows = await self._beats.call(
            _BEATS, [ids, tokens, self.lease_seconds, wait], self._beat_timeout()
        )
        # The rows come in the order of the arguments.
        for job, (status,) in zip(jobs, rows):
            if status == b"ok":
                job._since, job._lease = sent, self._lasts
            elif not job._over and not job._acked:
                self._lose(job, "cancelled" if status == b"cancelled" else "lost")

    def _lose(self, job: J, why: Why) -> None:
        """The job is not the worker's any more."""
        if job._over or job.why is not None:
            return
        job.why = why
        self._tell(job)

    async def _progress(self, job: J, value: Any) -> None:
        """Shows value in oq_jobs; tells the handler to end where the job is not its any more."""
        text = encode(value)
        if job._acked:  # It would wait for the handler's own transaction.
            return
        sent = time.monotonic()
        try:
            rows = await self._beats.call(
                _PROGRESS, [job.id, job.token, self.lease_seconds, text], self._beat_timeout()
            )
        except psycopg.errors.LockNotAvailable:  # An open transaction is about to end the job.
            return
        status = rows[0][0]
        if status == b"ok":
            job._since, job._lease = sent, self._lasts
        else:
            self._lose(job, "cancelled" if status == b"cancelled" else "lost")

    async def _listen(self) -> None:
        """Listens while there is nothing to do. Where that fails there is polling."""
        failures = 0
        while True:
            self._change.clear()
            try:
                if self._wants_wakes:
                    # A session that listens already is only tried.
                    await self._ear.call(_LISTEN, [self.queue], self.timeout)
                    if not self._listening:
                        self._listening = True
                        self._nudge()  # For what came in between.
                    failures = 0
                    await self._hear()
                elif self._listening:
                    self._listening = False
                    await self._ear.call(_UNLISTEN, [self.queue], self.timeout)
                else:
                    await self._change.wait()
            except psycopg.Error as e:
                self._listening = False
                self._log.warning("worker %s listens no more, and polls: %s", self.worker_id, brief(e))
                self._wake()
                await asyncio.sleep(backoff(failures))
                failures += 1

    async def _hear(self) -> None:
        """Until it is time to probe, or nobody wants wake-ups any more."""
        try:
            async with asyncio.timeout(PROBE):
                while self._wants_wakes:
                    if not self._ear.connected:
                        raise ConnectionFailed("the connection was lost")
                    await self._change.wait()
                    self._change.clear()
        except TimeoutError:
            pass

    async def _end(self) -> None:
        """Releases what was not begun, waits for what runs, acks and reports it."""
        self._closed = True
        self._wants_wakes = False
        self._change.set()
        for job in self._take_back():
            self._active -= 1
            if job.why is not None:
                self._done(job, job.why)
            else:
                job._over = True
                self._put_report(_Report(job, "release"))
        stage = "run"  # then tell, in which handlers have to return, and last, when none runs that is waited for
        until = time.monotonic() + self.drain
        while self._held:
            self._signalled = False
            self._collect()
            acks, self._acks = self._acks, []
            self._report_acks(acks)
            now = time.monotonic()
            if stage != "last" and (self._active <= 0 or (stage == "tell" and now >= until)):
                stage, until = "last", now + min(self.timeout, LAST)
            elif now >= until and stage == "run":
                stage, until = "tell", now + GRACE
                for job in list(self._held.values()):
                    if not job._over:
                        self._lose(job, "drain")
            elif now >= until:
                break
            if stage == "last" and (
                self._reporter.done() or not any(job._over for job in self._held.values())
            ):
                break
            await self._pause(until - now)
        for job in list(self._held.values()):
            if job._over:  # Its lease runs out.
                self._done(job, "lost", job._error)
        if self._active > 0:
            text = f"{self._active} handlers did not return"
            self._log.error("worker %s: %s", self.worker_id, text)
            raise Abandoned(text)
