"""W3C trace context in the headers of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple


class Trace(NamedTuple):
    """A W3C trace context, as it stands in a job's headers."""

    parent: str
    """The header traceparent."""
    state: str = ""
    """The header tracestate."""


_current: ContextVar[Trace | None] = ContextVar("openqueue_trace", default=None)
_inject: Callable[[dict[str, Any]], None] | None = None


def current_trace() -> Trace | None:
    """The trace that jobs enqueued here will carry: inside a handler, its job's."""
    return _current.get()


@contextmanager
def use_trace(trace: Trace | None) -> Iterator[None]:
    """What is enqueued inside carries the trace, in the headers traceparent and tracestate; jobs of
    enqueue_bulk() carry none."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def trace_with(inject: Callable[[dict[str, Any]], None] | None) -> None:
    """Each enqueue of the process, but for enqueue_bulk(), calls inject with a dict, to put its trace's headers there.

    ``opentelemetry.propagate.inject`` is such a function. Where it puts nothing, use_trace() counts,
    and always what the caller's own headers say. None leaves it off again.
    """
    global _inject
    _inject = inject


def trace_of(headers: Mapping[str, Any]) -> Trace | None:
    parent, state = headers.get("traceparent"), headers.get("tracestate")
    if not isinstance(parent, str) or not parent:
        return None
    return Trace(parent, state if isinstance(state, str) else "")


def traced(headers: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The headers, and the trace where they name none."""
    if headers is not None and "traceparent" in headers:
        return headers
    more: dict[str, Any] = {}
    if _inject is not None:
        _inject(more)
    trace = _current.get()
    if not more and trace is not None:
        more["traceparent"] = trace.parent
        if trace.state:
            more["tracestate"] = trace.state
    return {**more, **(headers or {})} if more else headers
