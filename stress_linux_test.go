package main

import (
	"fmt"
	"testing"
)

func TestThousandsOfTunnelsLoseNothingOnLoops(t *testing.T) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			stress(t, func(cfg *Config) { cfg.Loops = n }, func(g *testGateway) int {
				return 2 * wantAtRest(t, g)
			})
		})
	}
}
