package main

import (
	"context"
	"io"
)

func (b *bench) soak(ctx context.Context, out io.Writer, about string) error { return nil }
