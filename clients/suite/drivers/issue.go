//go:build ignore

// Issue SECRET JWKS ADDRESS prints a line and a token; see ../issue_test.go.
package main

import (
	"fmt"
	"os"
	"time"

	"gateway/clients/go/issue"
)

func main() {
	line, err := issue.Line(os.Args[1], os.Args[3])
	if err != nil {
		panic(err)
	}
	key, err := issue.ReadKey(os.Args[2])
	if err != nil {
		panic(err)
	}
	token, err := key.Token(os.Args[3], time.Minute, "game")
	if err != nil {
		panic(err)
	}
	fmt.Println(line)
	fmt.Println(token)
}
