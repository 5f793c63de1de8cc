"""What the server refuses, what a handler may raise, and how a failure reads."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
from psycopg import errors as pg

Duration = float | timedelta | str
"""Seconds, a timedelta, or text that PostgreSQL reads as an interval."""


class OpenQueueError(psycopg.DatabaseError):
    """The server's refusal; ``diag`` has its message, detail and hint.

    Standard SQLSTATEs keep psycopg's own classes: ``InsufficientPrivilege`` (42501),
    ``FeatureNotSupported`` (0A000) and those of :data:`TRY_AGAIN`.
    """

    @property
    def diag(self) -> pg.Diagnostic:
        cause = self.__cause__
        return cause.diag if isinstance(cause, psycopg.Error) else super().diag

    @property
    def hint(self) -> str | None:
        """What is allowed."""
        return self.diag.message_hint


class ArgumentError(OpenQueueError, ValueError):
    """OQ001: an argument that makes no sense. The message names it and its value."""

    sqlstate = "OQ001"


class LeaseLost(OpenQueueError):
    """OQ002: a strict ack of a lease that is lost. The transaction has to roll back."""

    sqlstate = "OQ002"


class NoSuchQueue(OpenQueueError):
    """OQ003: no such queue, where one must exist."""

    sqlstate = "OQ003"


class DuplicateJob(OpenQueueError):
    """OQ005: the unique key is taken, under ``unique_mode`` reject."""

    sqlstate = "OQ005"


class QueueFull(OpenQueueError):
    """OQ006: the queue has its ``max_depth`` of jobs."""

    sqlstate = "OQ006"


TRY_AGAIN = (pg.SerializationFailure, pg.DeadlockDetected)
"""Errors after which the same transaction may succeed: 40001 and 40P01."""

_BY_STATE: dict[str, type[OpenQueueError]] = {
    c.sqlstate: c
    for c in (ArgumentError, LeaseLost, NoSuchQueue, DuplicateJob, QueueFull)
    if c.sqlstate
}


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of an error of the server, or ''."""
    if not isinstance(error, psycopg.Error):
        return ""
    return error.sqlstate or error.diag.sqlstate or ""


def translated(error: psycopg.Error) -> psycopg.Error:
    """The error as one of the classes above, where it is one."""
    kind = _BY_STATE.get(sqlstate(error))
    if kind is None or isinstance(error, OpenQueueError):
        return error
    text = error.diag.message_primary or str(error)
    if error.diag.message_hint:
        text += f" ({error.diag.message_hint})"
    new = kind(text)
    new.__cause__ = error
    return new


@contextmanager
def translating() -> Iterator[None]:
    """Raises the server's refusals as the classes above."""
    try:
        yield
    except psycopg.Error as e:
        new = translated(e)
        if new is e:
            raise
        raise new from e


def refused(error: BaseException) -> bool:
    """Whether the server judged the call; else the connection failed, and it may be repeated.

    Class 57 is the server going away, 08 a pooler that lost it, 53 a server without room, 40 a
    transaction that can be run again; 25006 a standby, or what was the primary: another connection
    may lead to the one that is. 55P03 is a row that somebody else holds for longer than the
    lock_timeout. 26000 and 42P05 are prepared statements of another session, behind a pooler.
    """
    state = sqlstate(error)
    return (
        bool(state)
        and state[:2] not in ("57", "08", "53", "40")
        and state not in ("25006", "55P03", *_POOLED)
    )


_POOLED = ("26000", "42P05")


def unanswered(error: BaseException) -> bool:
    """Whether the call may have been done all the same: the connection failed before its answer."""
    state = sqlstate(error)
    return not state or state[:2] == "08" or state[:3] == "57P"


def unfit(error: BaseException) -> bool:
    """Whether an ack was refused for what it has itself, as by its result, or by what hangs on its job.

    Whatever else the server refuses acks for, as it may be broken or not ours to write to, is no failure
    of a job that was done.
    """
    return sqlstate(error)[:2] in ("OQ", "22", "23", "54")


def locked(error: BaseException) -> bool:
    """Whether the server would not wait for a lock: it is there, and takes other calls."""
    return isinstance(error, pg.LockNotAvailable)


class Failed(Exception):
    """To be raised by a handler where a failure was to be expected: its text is the job's error,
    without a traceback."""


class _Verdict(Exception):
    def __init__(self, reason: str | BaseException) -> None:
        super().__init__(reason)
        self.reason = reason

    def text(self) -> str:
        return describe(self.reason) if isinstance(self.reason, BaseException) else str(self.reason)


class Discard(_Verdict):
    """To be raised by a handler: fails the job for good. It is dead, whatever retries it has left."""


class RetryAfter(_Verdict):
    """To be raised by a handler: fails the attempt. The next comes after pause, not the backoff."""

    def __init__(self, pause: Duration, reason: str | BaseException = "") -> None:
        super().__init__(reason)
        self.pause = pause


class Snooze(Exception):
    """To be raised by a handler: gives the job back for a while. No attempt is counted."""

    def __init__(self, pause: Duration = 0) -> None:
        super().__init__(f"snoozed for {pause}")
        self.pause = pause


class Stopped(Exception):
    """The handler was told to end; ``why`` is ``lost``, ``cancelled``, ``drain`` or ``timeout``."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Abandoned(Exception):
    """Handlers did not return though they were told to. Their leases run out by themselves."""


LIMIT = 10_000


def legible(text: str) -> str:
    """Text that PostgreSQL takes."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as e:  # A __str__ that raises.
        return f"(no text: {type(e).__name__})"


def brief(error: psycopg.Error) -> str:
    """What logs say of a call that failed: one line of the server's, without its context."""
    text = error.diag.message_primary or ""
    if isinstance(error, OpenQueueError) or not text:
        text = said(error)
    if sqlstate(error) in _POOLED:
        text += " (does a transaction pooler stand between? set pooler)"
    return text


def headline(error: BaseException) -> str:
    """What logs say of an error."""
    text = said(error)
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__


def describe(error: BaseException) -> str:
    """What the job's error says: one line, then the traceback, at most 10,000 characters."""
    if isinstance(error, _Verdict):
        return legible(error.text() or type(error).__name__)[:LIMIT]
    text = said(error)
    if isinstance(error, Failed):
        return legible(text or "Failed")[:LIMIT]
    head = legible(headline(error))[: LIMIT // 2]
    try:
        lines = traceback.TracebackException.from_exception(error, limit=-15).format()
        trace = legible("".join(lines)).rstrip()
    except Exception:
        return head
    room = LIMIT - len(head) - 5
    if len(trace) > room:
        trace = "..." + trace[-room:]  # The innermost frames are at its end.
    return f"{head}\n\n{trace}"
