"""The calls of the SQL API: their texts, arguments and answers, for both kinds of connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

from psycopg.rows import dict_row, tuple_row

from ._errors import ArgumentError, Duration
from ._trace import traced

T = TypeVar("T")


class Retry(TypedDict, total=False):
    """A retry policy. What is missing is the queue's, or the server's default."""

    kind: Literal["exponential", "linear", "fixed"]
    base: Duration
    factor: float
    max: Duration
    jitter: float


class JobOptions(TypedDict, total=False):
    """The arguments and options of oq_enqueue. What is missing takes the server's default."""

    priority: int
    run_at: datetime | None
    delay: Duration
    max_retries: int | None
    ttl: Duration
    expires_at: datetime
    retry: Retry
    tags: Sequence[str]
    headers: Mapping[str, Any] | None
    unique_key: str | None
    unique_mode: Literal["skip", "replace", "debounce", "reject"]
    unique_for: Duration
    debounce_max: Duration
    group_key: str | None
    depends_on: Sequence[int]
    on_parent_failure: Literal["cancel", "run"]
    batch_id: int


class _NewJob(TypedDict):
    queue_name: str


class NewJob(_NewJob, JobOptions, total=False):
    """A job for enqueue_many. ``depends_on_refs`` name other jobs of the call by their ``ref``."""

    payload: Any
    ref: str
    depends_on_refs: Sequence[str]


class JobPatch(TypedDict, total=False):
    """What oq_update may change."""

    payload: Any
    priority: int
    run_at: datetime | None
    max_retries: int | None
    headers: Mapping[str, Any] | None


class Enqueued(NamedTuple):
    """What enqueue_many made of a job.

    ``inserted`` is false where the unique key was taken: then ``job_id`` is the other job's.
    """

    job_id: int
    inserted: bool


class JobResult(NamedTuple):
    """What oq_result says of a job, for as long as its queue keeps it."""

    state: str
    result: Any
    error: str | None


@dataclass(frozen=True)
class Call(Generic[T]):
    """A statement, and what its rows mean."""

    sql: str
    params: Sequence[Any]
    read: Callable[[list[Any]], T]
    rows: Any = tuple_row


_ARGUMENTS = ("priority", "run_at", "max_retries", "unique_key", "group_key", "headers")
_INTERVALS = ("delay", "ttl", "unique_for", "debounce_max")
_KNOWN = frozenset(JobOptions.__annotations__)
_MANY = frozenset(NewJob.__annotations__) | frozenset(_NewJob.__annotations__) | _KNOWN
_PATCH = frozenset(JobPatch.__annotations__)


def _plain(value: Any) -> Any:
    """What json.dumps does not know itself."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    raise TypeError(f"{type(value).__name__} {value!r}")


_dumps = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
).encode


def encode(value: Any) -> str:
    try:
        text = _dumps(value)
        text.encode()
    except (TypeError, ValueError, RecursionError) as e:
        raise ArgumentError(f"no JSON value: {e}") from e
    return text


def interval(value: Duration) -> str:
    """As PostgreSQL reads it, to the microsecond; version 14 takes no field beyond 2^31."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, str):
        return value
    try:
        return f"{value:.6f} seconds"
    except (TypeError, ValueError, OverflowError) as e:
        raise ArgumentError(f"no duration: {value!r}") from e


def moment(name: str, value: datetime | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ArgumentError(f"{name} {value!r} is no datetime with a time zone")
    return value.isoformat()


def _known(given: Iterable[str], allowed: frozenset[str]) -> None:
    for name in given:
        if name not in allowed:
            raise TypeError(f"no such option: {name!r} (there are {', '.join(sorted(allowed))})")


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are there, as JSON has them."""
    values: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name in _INTERVALS:
            value = interval(value)
        elif name in ("run_at", "expires_at"):
            value = moment(name, value)
        elif name == "retry":
            value = {k: interval(v) if k in ("base", "max") else v for k, v in value.items()}
        elif name in ("tags", "depends_on", "depends_on_refs"):
            if isinstance(value, str):
                raise ArgumentError(f"{name} {value!r} is no list")
            value = list(value)
        values[name] = value
    return values


def nothing(rows: list[Any]) -> None:
    pass


def _one(rows: list[Any]) -> Any:
    return rows[0][0]


def enqueue(queue: str, payload: Any, options: Mapping[str, Any]) -> Call[int]:
    _known(options, _KNOWN)
    values = _values(options)
    headers = traced(values.pop("headers", None))
    args = [values.pop(name, None) for name in _ARGUMENTS[:-1]]
    return Call(
        "select oq_enqueue(%s::text, %s::jsonb, %s::int, %s::timestamptz, %s::int, %s::text,"
        " %s::text, %s::jsonb, %s::jsonb)",
        [
            queue,
            encode(payload),
            0 if args[0] is None else args[0],
            *args[1:],
            encode(headers) if headers else None,
            encode(values) if values else None,
        ],
        _one,
    )


def enqueue_bulk(
    queue: str,
    payloads: Iterable[Any],
    priority: int,
    run_at: datetime | None,
    max_retries: int | None,
) -> Call[list[int]]:
    return Call(
        "select oq_enqueue_bulk(%s::text, %s::text[]::jsonb[], %s::int, %s::timestamptz, %s::int)",
        [queue, [encode(p) for p in payloads], priority, moment("run_at", run_at), max_retries],
        lambda rows: [r[0] for r in rows],
    )


def enqueue_many(jobs: Iterable[Mapping[str, Any]]) -> Call[list[Enqueued]]:
    all_jobs = []
    for i, job in enumerate(jobs):
        try:
            _known(job, _MANY)
            values = _values(job)
        except (ArgumentError, TypeError) as e:
            raise type(e)(f"jobs[{i}]: {e}") from e
        if "payload" in job:
            values["payload"] = job["payload"]
        headers = traced(values.pop("headers", None))
        if headers:
            values["headers"] = headers
        all_jobs.append(values)
    return Call(
        "select job_id, inserted from oq_enqueue_many(%s::jsonb) order by idx",
        [encode(all_jobs)],
        lambda rows: [Enqueued(*r) for r in rows],
    )


def cancel(job_id: int, reason: str | None) -> Call[bool]:
    return Call("select oq_cancel(%s::bigint, %s::text)", [job_id, reason], _one)


def update(job_id: int, patch: Mapping[str, Any]) -> Call[bool]:
    _known(patch, _PATCH)
    values = dict(patch)
    if "run_at" in values:
        values["run_at"] = moment("run_at", values["run_at"])
    return Call("select oq_update(%s::bigint, %s::jsonb)", [job_id, encode(values)], _one)


def get(job_id: int) -> Call[dict[str, Any] | None]:
    return Call(
        "select * from oq_get(%s::bigint)",
        [job_id],
        lambda rows: rows[0] if rows else None,
        dict_row,
    )


def result(job_id: int) -> Call[JobResult | None]:
    return Call(
        "select state, result, error from oq_result(%s::bigint)",
        [job_id],
        lambda rows: JobResult(*rows[0]) if rows else None,
    )


def ack_strictly(job_id: int, token: int, value: str | None) -> Call[bool]:
    return Call(
        "select oq_ack(%s::bigint, %s::bigint, %s::jsonb, true)", [job_id, token, value], _one
    )


def throttle(queue: str, until: datetime, group_key: str | None) -> Call[None]:
    return Call(
        "select oq_throttle(%s::text, %s::timestamptz, %s::text)",
        [queue, moment("until", until), group_key],
        nothing,
    )


# Of a lease. Numbers in one column: each column of a row costs as much as what is done with it.
COLUMNS = (
    "concat_ws(' ', job_id, lease_token, attempt, priority, max_retries, extract(epoch from created_at),"
    " extract(epoch from lease_expires_at - clock_timestamp())), payload::text, headers::text, group_key"
)

# For openqueue.testing: one job at a time, on the test's own connection.


def lease_one(queue: str, worker_id: str) -> Call[list[Any] | None]:
    return Call(
        f"select {COLUMNS} from oq_lease(%s::text, %s::text)",
        [queue, worker_id],
        lambda rows: list(rows[0]) if rows else None,
    )


def ack(job_id: int, token: int, value: str | None) -> Call[bool]:
    return Call("select oq_ack(%s::bigint, %s::bigint, %s::jsonb)", [job_id, token, value], _one)


def nack(
    job_id: int, token: int, error: str, retry: bool, after: str | None
) -> Call[str | None]:
    return Call(
        "select oq_nack(%s::bigint, %s::bigint, %s::text, %s::boolean, %s::interval)",
        [job_id, token, error, retry, after],
        _one,
    )


def release(job_id: int, token: int, delay: str | None) -> Call[bool]:
    return Call(
        "select oq_release(%s::bigint, %s::bigint, %s::interval)", [job_id, token, delay], _one
    )
