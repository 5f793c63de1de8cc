"""W3C trace context in the headers of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Optional


class Trace(NamedTuple):
    """A W3C trace context, as it stands in a job's headers."""

    parent: str
    state: str = ""


_current: ContextVar[Optional[Trace]] = ContextVar("openqueue_trace", default=None)


def current_trace() -> Optional[Trace]:
    """The trace that jobs enqueued here will carry: inside a handler, its job's."""
    return _current.get()


@contextmanager
def use_trace(trace: Optional[Trace]) -> Iterator[None]:
    """What is enqueued inside carries the trace, in the headers traceparent and tracestate."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def trace_of(headers: Mapping[str, Any]) -> Optional[Trace]:
    parent, state = headers.get("traceparent"), headers.get("tracestate")
    if not isinstance(parent, str) or not parent:
        return None
    return Trace(parent, state if isinstance(state, str) else "")


def traced(headers: Optional[Mapping[str, Any]]) -> Optional[Mapping[str, Any]]:
    """The headers, and the trace where they name none."""
    trace = _current.get()
    if trace is None or (headers is not None and "traceparent" in headers):
        return headers
    more = dict(headers or {}, traceparent=trace.parent)
    if trace.state:
        more["tracestate"] = trace.state
    return more
