"""A leased job, in the hands of its handler."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from ._worker import BaseWorker

P = TypeVar("P")
Why = Literal["lost", "cancelled", "drain", "timeout"]
_UNSET: Any = object()


class BaseJob(Generic[P]):
    """What both kinds of job have in common. ``P`` is the type of the payload."""

    __slots__ = (
        "id",
        "token",
        "attempt",
        "queue",
        "why",
        "seconds",
        "_row",
        "_numbers",
        "_decode",
        "_payload",
        "_headers",
        "_worker",
        "_since",
        "_lease",
        "_over",
        "_acked",
        "_sent",
        "_result",
        "_error",
        "_handle",
    )

    id: int
    """The job's id, as enqueue() returned it."""
    token: int
    """Rises with each lease of the job: pass it on to what must not be done twice."""
    attempt: int
    """Counts from 1."""
    queue: str
    """The queue's name."""
    why: Why | None
    """Why the handler was told to end: its lease is lost, the job cancelled, the worker drained, or
    timeout() over."""
    seconds: float
    """How long the handler took; 0 before its end."""

    def __init__(
        self,
        row: list[Any],
        queue: str,
        decode: Callable[[Any], P] | None = None,
        worker: BaseWorker[Any] | None = None,
    ) -> None:
        numbers = row[0].split()
        self.id, self.token, self.attempt = int(numbers[0]), int(numbers[1]), int(numbers[2])
        self.queue = queue
        self.why = None
        self.seconds = 0.0
        self._row = row
        self._numbers = numbers
        self._decode = decode
        self._payload: Any = _UNSET
        self._headers: Any = _UNSET
        self._worker = worker
        self._since = 0.0  # of the lease, or the last heartbeat
        self._lease = 0.0  # how long it lasts
        self._over = False  # finished, or nobody's any more
        self._acked = False  # in a transaction of the handler
        self._sent = False  # an ack, whose answer never came
        self._result: str | None = None
        self._error: BaseException | None = None
        self._handle: Any = None  # the task

    def _text(self, column: int) -> str:
        value = self._row[column]
        return value.decode() if isinstance(value, bytes) else str(value)

    @property
    def payload(self) -> P:
        """The payload, read by json.loads and then by the worker's ``decode``.

        Read when it is first asked for; what decode raises is the handler's failure.
        """
        if self._payload is _UNSET:
            value = json.loads(self._row[1])
            self._payload = value if self._decode is None else self._decode(value)
        payload: P = self._payload
        return payload

    @property
    def payload_text(self) -> str:
        """The payload as it stands in the database, for a JSON reader of your own."""
        return self._text(1)

    @property
    def headers(self) -> dict[str, Any]:
        """What the producer sent beside the payload; empty where it sent nothing."""
        if self._headers is _UNSET:
            self._headers = {} if self._row[2] is None else json.loads(self._row[2])
        headers: dict[str, Any] = self._headers
        return headers

    @property
    def priority(self) -> int:
        """Higher goes first."""
        return int(self._numbers[3])

    @property
    def max_retries(self) -> int:
        """How many attempts may follow the first."""
        return int(self._numbers[4])

    @property
    def group_key(self) -> str | None:
        """The job's group, or None."""
        return None if self._row[3] is None else self._text(3)

    @property
    def created_at(self) -> datetime:
        """When the job was enqueued, in UTC, by the server's clock."""
        return datetime.fromtimestamp(float(self._numbers[5]), timezone.utc)

    def __repr__(self) -> str:
        return f"<job {self.id} of {self.queue}, attempt {self.attempt}>"

    def _lasts(self) -> float:
        """Seconds that the lease had before it, when the server gave it; a second at least."""
        return max(1.0, float(self._numbers[6]))

    def _clock(self) -> float:
        return time.monotonic() - self._since

    def _begin(self) -> bool:
        """Whether it may be begun: one whose lease ended here, while the process stood still, may be
        somebody else's."""
        if self.why is None and self._clock() > self._lease:
            self.why = "lost"
        return self.why is None
