package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"
)

func main() {
	matrix := flag.String("matrix", "", "page to hold against the tests that passed; only for a run of every package")
	file := flag.String("record", "", "file to write the record to: result, seconds, package, test")
	slow := flag.Int("slow", 12, "how many of the slowest tests to name")
	flag.Parse()
	if err := run(os.Stdout, *matrix, *file, *slow, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		os.Exit(1)
	}
}

// run runs go test as the arguments say (see split), and reports everything that makes the run fail in one error.
func run(out io.Writer, matrix, file string, slow int, args []string) error {
	// An interrupt reaches the child by the terminal; what it says about it is still worth printing.
	signal.Ignore(os.Interrupt)
	r, start, stolen := newRecord(out), time.Now(), watchStolen()
	var errs []error
	steps := split(args)
	defer func() { fmt.Fprintf(out, "%s\n", stolen()) }()
	compiled := ahead(steps[1:])
	for i := range steps {
		errs = append(errs, steps[i].run(r))
		if i == 0 {
			compiled()
		}
	}
	return errors.Join(append(errs, finish(r, matrix, file, slow, time.Since(start), os.Getenv("CI") != ""))...)
}

// finish says what the run was and finds what go test does not: skips where none may be, and a page that promises more than ran.
func finish(r *record, matrix, file string, slow int, took time.Duration, ci bool) error {
	var errs []error
	r.summary(slow, took)
	if file != "" {
		errs = append(errs, r.write(file))
	}
	errs = append(errs, r.verdict(ci))
	if matrix != "" {
		page, err := os.ReadFile(matrix)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		m, err := parseMatrix(string(page))
		errs = append(errs, err, m.complete(requirements()), m.ran(r))
		fmt.Fprintf(r.out, "%s: %s\n", matrix, m.count())
	}
	return errors.Join(errs...)
}
