package openqueue

import "context"

// Trace is a W3C trace context, as it stands in a job's headers.
type Trace struct {
	Parent string // header traceparent
	State  string // header tracestate
}

type traceKey struct{}

// ContextWithTrace is a context whose enqueues, but for EnqueueBulk's, carry the trace, where no Client.Inject says
// otherwise.
// A worker without an Extract gives its handlers such a context from the job's headers.
func ContextWithTrace(ctx context.Context, t Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceFromContext is the trace of ContextWithTrace.
func TraceFromContext(ctx context.Context) (Trace, bool) {
	t, ok := ctx.Value(traceKey{}).(Trace)
	return t, ok
}

func injectTrace(ctx context.Context, h Headers) {
	if t, ok := TraceFromContext(ctx); ok && t.Parent != "" {
		h["traceparent"] = t.Parent
		if t.State != "" {
			h["tracestate"] = t.State
		}
	}
}

func extractTrace(ctx context.Context, h Headers) context.Context {
	if parent := h.Get("traceparent"); parent != "" {
		return ContextWithTrace(ctx, Trace{parent, h.Get("tracestate")})
	}
	return ctx
}
