// What examples/dial.cpp does, with tsnet: dials a service on the tailnet and copies it to the terminal. For the size of
// a program that only dials.
//
//	tsnetdial STATE_DIR CONTROL_URL HOST:PORT [KEY]
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"tailscale.com/tsnet"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: tsnetdial STATE_DIR CONTROL_URL HOST:PORT [KEY]")
		os.Exit(2)
	}
	s := &tsnet.Server{Dir: os.Args[1], ControlURL: os.Args[2]}
	if len(os.Args) > 4 {
		s.AuthKey = os.Args[4]
	}
	c, err := s.Dial(context.Background(), "tcp", os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, "tsnetdial:", err)
		os.Exit(1)
	}
	go func() {
		io.Copy(c, os.Stdin)
		if half, ok := c.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	}()
	io.Copy(os.Stdout, c)
}
