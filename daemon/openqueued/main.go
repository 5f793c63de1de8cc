// Command openqueued is the clock of OpenQueue.
package main

import (
	"os"

	"github.com/openqueue/openqueue/daemon"
)

func main() { os.Exit(daemon.Main(os.Args)) }
