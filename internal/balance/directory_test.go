package balance

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"gateway/internal/address"
)

// listing is a directory of hosts, by the name of their service.
func listing(find func(name string) ([]string, error)) *Directory[string] {
	return NewDirectory(
		func(_ context.Context, name string) ([]string, error) { return find(name) },
		func(host string) Target {
			return Target{Addr: address.Address{Host: host, Port: 4000}, Weight: 1, Priority: 7}
		})
}

func TestTheSameListGivesTheSameTargets(t *testing.T) {
	lists := map[string][]string{"game.test": {"a.test", "b.test"}}
	d := listing(func(name string) ([]string, error) { return lists[name], nil })
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
	lists["game.test"] = []string{"a.test", "b.test"} // looked up again
	if again := find(); again == first {
		t.Error("nobody is told of the new list")
	}
	lists["game.test"] = []string{"c.test"}
	targets, err := d.Find(t.Context(), "game.test")
	if err != nil || len(targets) != 1 || targets[0].Addr.Host != "c.test" || targets[0].Priority != 7 {
		t.Errorf("%v, %v", targets, err)
	}
}

func TestWhatCannotBeFoundIsNotKnown(t *testing.T) {
	lost := errors.New("lost")
	d := listing(func(name string) ([]string, error) {
		if name == "lost.test" {
			return nil, lost
		}
		return []string{"a.test"}, nil
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
	one := []string{"a.test"}
	d := listing(func(string) ([]string, error) { return one, nil })
	for i := range 3*maxKnown + 5 {
		d.Find(t.Context(), fmt.Sprintf("game%d.test", i))
	}
	if n := len(d.Routes()); n > maxKnown || n == 0 {
		t.Errorf("%d are known", n)
	}
}
