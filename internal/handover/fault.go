package handover

// at is called at each step of a batch at which a process may die. Tests make it die
// there; see also fault_on.go.
var at = func(step string, batch uint64) {}
