package main

import (
	"context"
	"time"
)

// kind is what a row asks of a contender; not every peer can do everything.
type kind int

const (
	kindEnqueue kind = iota
	kindBulk
	kindOne
	kindBatch
	kindSteady
)

var peerNames = []string{"pgmq", "pgque", "river"}

func (b *bench) findPeers(ctx context.Context, cfg Config) error { return nil }

func (b *bench) sqlPeers(kind) []contender { return nil }

func (b *bench) peerEntrants(ctx context.Context, id string, kind kind, window time.Duration,
	turn func(*target) entrant) ([]entrant, error) {
	return nil, nil
}
