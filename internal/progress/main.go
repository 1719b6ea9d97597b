// Command progress runs a "go test -json" and says what passes when it passes:
//
//	progress go test -json -race ./...
//
// By itself go test says nothing of a package before all of it is done, which
// can take minutes. Of a test that fails, what it has printed is shown at once,
// and cut where it is long. The exit code is that of the command.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"time"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// Codes of our own, when there is none of the command.
const (
	exitFailed = 1
	exitUsage  = 2
)

// silence is how long nothing is said before it is said what is going on.
const silence = 10 * time.Second

func run(command []string, stdout, stderr io.Writer) int {
	if len(command) == 0 {
		fmt.Fprintln(stderr, "usage: progress go test -json ARGUMENTS")
		return exitUsage
	}
	// An interrupt reaches the command too, which ends by it; its last words
	// are worth waiting for.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(stderr, "progress:", err)
		return exitFailed
	}
	failed := follow(out, newReport(stdout), silence)
	err = cmd.Wait()
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(stderr, "progress:", err)
		return exitFailed
	}
	if failed {
		return exitFailed
	}
	return 0
}

// follow tells r of each line until they end, and has it say what is going on
// after each time of silence. It returns whether a test or package has failed.
func follow(out io.Reader, r *report, silence time.Duration) (failed bool) {
	lines := make(chan []byte)
	go readLines(out, lines)
	quiet := time.NewTicker(silence)
	defer quiet.Stop()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				r.finish()
				return len(r.failed) > 0
			}
			if r.take(line) {
				quiet.Reset(silence)
			}
		case <-quiet.C:
			r.goingOn()
		}
	}
}

// readLines sends each line, however long, and closes the channel at the end.
func readLines(from io.Reader, to chan<- []byte) {
	defer close(to)
	for rd := bufio.NewReader(from); ; {
		line, err := rd.ReadBytes('\n')
		if len(line) > 0 {
			to <- line
		}
		if err != nil {
			return
		}
	}
}
