package kcp

import (
	"fmt"
	"testing"

	"gateway/internal/harness"
)

func TestSessionsAreCountedListedAndCut(t *testing.T) {
	t.Parallel()
	a := harness.NewAdmin(t)
	echo := harness.StartEcho(t)
	p := startKCP(t, a.Flag)
	s := openKCP(t, p.kcp, echo)
	harness.Echo(t, s, "hello")
	listener := fmt.Sprintf("listener=%q", "kcp://"+p.kcp)
	harness.Eventually(t, "the session is counted", func() bool {
		m := a.Metrics(t)
		return m.Sum("gateway_kcp_sessions", listener) == 1 && m["gateway_tunnels_active"] == 1 &&
			m.Sum("gateway_connections_total", listener, `form="line+kcp"`, `status="200"`) == 1 &&
			m.Sum("gateway_bytes_total", `direction="down"`) == 5
	})
	var list struct {
		Tunnels []struct{ ID, Client, Listener, Form string }
	}
	a.JSON(t, "GET", "/api/tunnels", "", &list)
	if len(list.Tunnels) != 1 || list.Tunnels[0].Client != clientOf(s) || list.Tunnels[0].Form != "line+kcp" || list.Tunnels[0].Listener != "kcp://"+p.kcp {
		t.Errorf("%+v", list)
	}
	var answer struct{ Cut int }
	a.JSON(t, "POST", "/api/tunnels/cut", fmt.Sprintf(`{"id":%q}`, list.Tunnels[0].ID), &answer)
	if answer.Cut != 1 {
		t.Errorf("%d were cut", answer.Cut)
	}
	harness.Eventually(t, "the tunnel has ended", func() bool {
		m := a.Metrics(t)
		return m["gateway_tunnels_active"] == 0 && m.Sum("gateway_tunnels_ended_total", `how="cut"`) == 1
	})
}
