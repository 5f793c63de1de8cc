// Package sql holds the queue itself: migrations and functions, embedded for openqueued migrate.
package sql

import "embed"

// Migrations are the tern migrations, with the snapshots of the code that they install.
//
//go:embed migrations
var Migrations embed.FS
