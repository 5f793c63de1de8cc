// Package openqueue is the Go library of OpenQueue, a job queue inside PostgreSQL, on pgx.
//
// Enqueue takes what the caller has, a pool, a connection or a transaction, and never commits: the job
// exists exactly if the transaction does. A Worker leases jobs in batches, keeps their leases, acks
// them together, sleeps until it is woken, and drains when its context ends. All queue logic is in
// the database; what is here are calls of its oq_ functions.
package openqueue
