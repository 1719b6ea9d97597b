package harness

import (
	"strings"
	"testing"
)

func TestAFieldOfTwoTypesIsFound(t *testing.T) {
	t.Parallel()
	var f fields
	var log Log
	log.Write([]byte(`{"msg":"listening","addr":"127.0.0.1:1","pid":7}` + "\n" + `{"msg":"settings","set":{"addr":{"value":"x"}}}` + "\n"))
	if conflicts := f.add(&log); len(conflicts) > 0 {
		t.Errorf("%q", conflicts)
	}
	var other Log
	other.Write([]byte(`{"msg":"settings","addr":{"value":"x"},"pid":8,"set":{"addr":"y"}}` + "\nno JSON\n"))
	conflicts := f.add(&other)
	if len(conflicts) != 2 || !strings.Contains(strings.Join(conflicts, "\n"), "set.addr is a map[string]interface {}") {
		t.Errorf("%q", conflicts)
	}
}
