package main

import "os"

func isWorker() bool { return len(os.Args) > 1 && os.Args[1] == "worker" }
