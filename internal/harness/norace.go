//go:build !race

package harness

// RaceEnabled tells whether the tests, and the gateways that they drive, run with
// the race detector.
const RaceEnabled = false
