package directory

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"gateway/internal/address"
	"gateway/internal/resolve"
)

// list is what DNS lists.
func list(hosts ...string) (all []resolve.Service) {
	for i, host := range hosts {
		all = append(all, resolve.Service{Addr: address.Address{Host: host, Port: 4000}, Weight: uint16(i), Priority: 7})
	}
	return all
}

func TestTheSameListGivesTheSameTargets(t *testing.T) {
	lists := map[string][]resolve.Service{"game.test": list("a.test", "b.test")}
	d := New(func(_ context.Context, name string) ([]resolve.Service, error) { return lists[name], nil })
	find := func() string {
		targets, err := d.Find(t.Context(), "game.test")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%p %v", targets, targets)
	}
	first := find()
	if again := find(); again != first {
		t.Errorf("%s, and then %s", first, again)
	}
	lists["game.test"] = list("a.test", "b.test") // looked up again
	if again := find(); again == first {
		t.Error("balance is not told of the new list")
	}
	lists["game.test"] = list("c.test")
	targets, err := d.Find(t.Context(), "game.test")
	if err != nil || len(targets) != 1 || targets[0].Addr.Host != "c.test" || targets[0].Priority != 7 {
		t.Errorf("%v, %v", targets, err)
	}
}

func TestWhatCannotBeFoundIsNotKnown(t *testing.T) {
	lost := errors.New("lost")
	d := New(func(_ context.Context, name string) ([]resolve.Service, error) {
		if name == "lost.test" {
			return nil, lost
		}
		return list("a.test"), nil
	})
	for name, want := range map[string]error{"lost.test": lost, "game.test": nil} {
		if _, err := d.Find(t.Context(), name); err != want {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if all := d.Routes(); len(all) != 1 || all[0].String() != "srv:game.test" {
		t.Errorf("routes %v", all)
	}
}

func TestManyServicesTakeBoundedMemory(t *testing.T) {
	one := list("a.test")
	d := New(func(context.Context, string) ([]resolve.Service, error) { return one, nil })
	for i := range 3*maxKnown + 5 {
		d.Find(t.Context(), fmt.Sprintf("game%d.test", i))
	}
	if n := len(d.Routes()); n > maxKnown || n == 0 {
		t.Errorf("%d are known", n)
	}
}
