package admin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
)

// PrintTunnels writes the tunnels of a filter as a table.
func PrintTunnels(ctx context.Context, w io.Writer, c *Client, filter url.Values) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tCLIENT\tBACKEND\tLISTENER\tFORM\tAGE\tIDLE\tUP\tDOWN\tSTATE")
	now := time.Now()
	err := c.Tunnels(ctx, filter, func(t *Tunnel) {
		backend := t.Backend
		if t.BackendIP != "" {
			backend += " (" + t.BackendIP + ")"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, t.Client, backend, t.Listener, t.Form,
			age(now.Sub(t.Since)), age(time.Duration(t.IdleMS)*time.Millisecond), size(t.Up), size(t.Down), t.State)
	})
	if err != nil {
		return err
	}
	return table.Flush()
}

// age is a duration to read: its two largest units.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// size is a number of bytes to read.
func size(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), "kMGTPE"
	for i := range len(units) {
		if f /= 1000; f < 999.95 || i == len(units)-1 {
			return fmt.Sprintf("%.1f %cB", f, units[i])
		}
	}
	return ""
}

// Watch writes how all is as a table, and again every so often until ctx ends, then
// over the former if w is a terminal; or once, if every is 0. An error ends it only
// the first time: a gateway that is restarted is there again soon.
func Watch(ctx context.Context, w io.Writer, c *Client, every time.Duration, clear bool) error {
	var before *Status
	for {
		st, err := c.Status(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && before == nil:
			return err
		}
		var page bytes.Buffer
		if clear {
			page.WriteString("\x1b[H\x1b[2J") // home, erase
		} else if before != nil {
			page.WriteString("\n")
		}
		if err != nil {
			fmt.Fprintln(&page, err)
		} else {
			printStatus(&page, &st, before)
			before = &st
		}
		if _, err := w.Write(page.Bytes()); err != nil {
			return err
		}
		if every == 0 {
			return nil
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
	}
}

// printStatus writes a table. Rates are those since before, if that is of the same
// process, or since the start.
func printStatus(w io.Writer, st, before *Status) {
	if before == nil || before.PID != st.PID || !before.Started.Equal(st.Started) || !before.Time.Before(st.Time) {
		before = &Status{Time: st.Started}
	}
	seconds := max(st.Time.Sub(before.Time).Seconds(), 1e-3)
	state := "ready"
	if !st.Ready {
		state = "NOT READY (" + st.Reason + ")"
	}
	fmt.Fprintf(w, "gateway %s, pid %d, up %s, log level %s: %s\n\n", st.Version, st.PID, age(st.Time.Sub(st.Started)), st.LogLevel, state)

	up, down := &st.Bytes.Up, &st.Bytes.Down
	rows(w, "", [][]string{
		{"connections", count(st.Accepted) + " accepted", rate(st.Accepted-before.Accepted, seconds), count(st.Pending) + " pending", count(total(st.Refusals)) + " refused"},
		{"tunnels", count(st.Tunnels.Active) + " open", rate(st.Tunnels.Opened-before.Tunnels.Opened, seconds), count(st.Tunnels.Opened) + " opened", count(st.Tunnels.ended()) + " ended"},
		{"bytes up", size(up.all()), byteRate(up.all()-before.Bytes.Up.all(), seconds), size(up.Spliced) + " spliced", size(up.Copied) + " copied", size(up.HTTP) + " http"},
		{"bytes down", size(down.all()), byteRate(down.all()-before.Bytes.Down.all(), seconds), size(down.Spliced) + " spliced", size(down.Copied) + " copied", size(down.HTTP) + " http"},
		{"log", count(st.LogDropped) + " lines dropped"},
	})

	var list [][]string
	for _, l := range st.Listeners {
		list = append(list, []string{l.Name, or(l.Forward, "sealed"), count(l.Accepted)})
	}
	rows(w, "LISTENER\tLEADS TO\tACCEPTED", list)

	list = nil
	for _, c := range st.Connections {
		list = append(list, []string{c.Listener, c.Form, c.Status, count(c.Count)})
	}
	rows(w, "CAME BY\tFORM\tSTATUS\tCOUNT", list)

	list = nil
	for _, r := range st.Refusals {
		list = append(list, []string{r.Reason, count(r.Count)})
	}
	rows(w, "REFUSED\tCOUNT", list)

	list = nil
	for _, e := range st.Tunnels.Ended {
		list = append(list, []string{e.By, e.How, or(e.Limit, "-"), count(e.Count)})
	}
	rows(w, "ENDED BY\tHOW\tLIMIT\tCOUNT", list)

	list = nil
	for _, b := range st.Backends {
		state := "in use"
		if b.Skipped {
			state = "SKIPPED"
		}
		list = append(list, []string{b.Address, count(b.Tunnels), count(b.Failures), state})
	}
	rows(w, "BACKEND\tTUNNELS\tFAILURES\tSTATE", list)

	list = nil
	for i, l := range st.Loops {
		busy := l.BusySeconds
		if i < len(before.Loops) {
			busy -= before.Loops[i].BusySeconds
		}
		list = append(list, []string{fmt.Sprint(i), count(l.Connections), fmt.Sprintf("%.1f %%", 100*busy/seconds), fmt.Sprintf("%.1f ms", 1000*l.LongestTurnSeconds)})
	}
	rows(w, "LOOP\tCONNECTIONS\tBUSY\tLONGEST TURN", list)

	list = nil
	for _, l := range []struct {
		name string
		Use
	}{{"descriptors", st.Limits.Descriptors}, {"connections", st.Limits.Connections}, {"pipes", st.Limits.Pipes}, {"unproven clients", st.Limits.Unproven}} {
		if l.Limit > 0 {
			list = append(list, []string{l.name, count(l.Used), count(l.Limit), fmt.Sprintf("%.0f %%", 100*float64(l.Used)/float64(l.Limit))})
		}
	}
	rows(w, "LIMIT\tUSED\tOF\tSHARE", list)

	list = nil
	for _, k := range st.KCP.Listeners {
		list = append(list, []string{k.Listener, count(k.Sessions), count(k.Unproven), count(k.Refused), count(k.Challenged), count(k.Dropped)})
	}
	rows(w, "KCP\tSESSIONS\tUNPROVEN\tREFUSED\tCHALLENGED\tDROPPED", list)

	if st.TLS.File != "" {
		rows(w, "CERTIFICATE\tEXPIRES IN", [][]string{{st.TLS.File, age(st.TLS.NotAfter.Sub(st.Time))}})
	}

	list = nil
	for _, r := range st.Recent[:min(len(st.Recent), 5)] {
		list = append(list, []string{age(st.Time.Sub(r.Time)) + " ago", r.Client, r.Form, or(r.Status, "-"), r.Reason, or(r.Backend, "-")})
	}
	rows(w, "LAST REFUSED\tCLIENT\tFORM\tSTATUS\tREASON\tBACKEND", list)
}

// rows writes a table with a head, unless it is empty, and a blank line behind it.
func rows(w io.Writer, head string, list [][]string) {
	if len(list) == 0 {
		return
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if head != "" {
		fmt.Fprintln(table, head)
	}
	for _, row := range list {
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	table.Flush()
	fmt.Fprintln(w)
}

func (m *Moved) all() int64 { return m.Spliced + m.Copied + m.HTTP }

func total(list []ReasonCount) (n int64) {
	for _, r := range list {
		n += r.Count
	}
	return n
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func count(n int64) string { return fmt.Sprint(n) }

func rate(n int64, seconds float64) string { return fmt.Sprintf("%.1f/s", float64(n)/seconds) }

func byteRate(n int64, seconds float64) string { return size(int64(float64(n)/seconds)) + "/s" }
