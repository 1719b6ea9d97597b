package harness

import (
	"encoding/json"
	"fmt"
	"sync"
)

// fields are the JSON types of the fields of all logs that this test program has read: a
// field has one type in all lines of all messages, or a store of logs that makes a
// column of it refuses some of them.
type fields struct {
	mu    sync.Mutex
	types map[string]fieldType // by name; that of one in a group has the group's before it
}

// fieldType is a type, and a line that had it.
type fieldType struct{ name, line string }

var allFields fields

// add takes the fields of a log and returns where they contradict what was there.
func (f *fields) add(log *Log) (conflicts []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.types == nil {
		f.types = make(map[string]fieldType)
	}
	var look func(prefix, line string, object map[string]any)
	look = func(prefix, line string, object map[string]any) {
		for name, value := range object {
			kind := fmt.Sprintf("%T", value)
			before, known := f.types[prefix+name]
			switch {
			case !known:
				f.types[prefix+name] = fieldType{kind, line}
			case before.name != kind:
				conflicts = append(conflicts, fmt.Sprintf("%s is a %s in %s and a %s in %s", prefix+name, before.name, before.line, kind, line))
			}
			if inner, ok := value.(map[string]any); ok {
				look(prefix+name+".", line, inner)
			}
		}
	}
	log.each(func(m map[string]any) {
		text, _ := json.Marshal(m)
		look("", string(text), m)
	})
	return conflicts
}
