package admin

import (
	"context"
	"fmt"
	"io"
	"net/url"
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
