package memlimit

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// system returns the limits that the system sets, in bytes. root is "/" but for
// tests.
//
// A control group is bound by those above it too. Inside a container the
// process's own path may not exist: then its group is mounted as the root
// (cgroup_namespaces(7)).
func system(root string) (limits []int64) {
	if text, err := os.ReadFile(filepath.Join(root, "proc/meminfo")); err == nil {
		if fields := strings.Fields(string(text)); len(fields) > 1 && fields[0] == "MemTotal:" {
			if kib, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				limits = append(limits, kib<<10)
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return limits
	}
	for line := range bytes.Lines(text) {
		fields := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		switch {
		case len(fields) != 3:
		case fields[0] == "0": // version 2
			limits = append(limits, above(filepath.Join(root, "sys/fs/cgroup"), fields[2], "memory.max")...)
		case strings.Contains(","+fields[1]+",", ",memory,"):
			limits = append(limits, above(filepath.Join(root, "sys/fs/cgroup/memory"), fields[2], "memory.limit_in_bytes")...)
		}
	}
	return limits
}

// above returns the limits of a control group and of those above it.
func above(mount, group, file string) (limits []int64) {
	for {
		if text, err := os.ReadFile(filepath.Join(mount, group, file)); err == nil {
			// "max" is no number, and no limit.
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
				limits = append(limits, n)
			}
		}
		if group == "/" || group == "." || group == "" {
			return limits
		}
		group = filepath.Dir(group)
	}
}
