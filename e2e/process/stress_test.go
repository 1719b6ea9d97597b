package process

import (
	"runtime"
	"testing"

	"gateway/internal/harness"
)

func TestThousandsOfTunnelsLoseNothing(t *testing.T) {
	harness.Long(t)
	for way, loops := range map[string]bool{"-loops=-1": false, "-loops=1": true, "-loops=3": true, "-io-uring=0": true} {
		t.Run(way, func(t *testing.T) {
			storm := harness.NewStorm(t, 1000, loops && runtime.GOOS == "linux")
			p := harness.Start(t, way, harness.WithPprof, "-resolver="+storm.Resolver)
			harness.Finish(t, harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))) // what is made once is there now
			p.Log.WaitLine(t, "tunnel", 1)
			rest := p.Rest(t)
			storm.Run(t, p.Addr, &p.Log)
			p.WaitForRest(t, rest)
		})
	}
}
