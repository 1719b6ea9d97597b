// Command ask is a service for the gateway's -ask: it looks up names and tickets in a
// file, in etcd or in Redis. It is meant to be copied and changed: a strategy of your own
// goes into answer.
package main

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// question is what the gateway asks; docs/asking.md has all fields.
type question struct {
	Name   string `json:"name"`
	Ticket string `json:"ticket"`
	Client string `json:"client"`
	Form   string `json:"form"`
}

// store knows the answer for a key, as JSON: {"backend": "10.0.0.7:4000", "ttl": 10}.
// The error is errUnknown where there is none; any other means that nobody knows.
type store interface {
	get(ctx context.Context, key string) (answer []byte, err error)
}

var errUnknown = errors.New("unknown")

type service struct {
	store store
	token string // that the gateway has to show; empty: none
}

// storeTimeout is less than the gateway's -ask-timeout, so that the gateway hears why.
const storeTimeout = 500 * time.Millisecond

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	var q question
	switch {
	case s.token != "" && subtle.ConstantTimeCompare([]byte(bearer), []byte(s.token)) != 1:
		http.Error(w, "whose gateway are you?", http.StatusUnauthorized)
		return
	case r.Method != http.MethodPost || json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&q) != nil:
		http.Error(w, "this is no question", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
	defer cancel()
	answer, err := s.answer(ctx, &q)
	switch {
	case err == errUnknown:
		http.Error(w, "no such thing", http.StatusNotFound) // the client gets 401
	case err != nil:
		log.Print(err)
		http.Error(w, "ask again", http.StatusServiceUnavailable) // the last answer serves on
	default:
		w.Header().Set("Content-Type", "application/json")
		w.Write(answer)
	}
}

// answer is the strategy.
func (s *service) answer(ctx context.Context, q *question) ([]byte, error) {
	if q.Ticket != "" {
		return s.store.get(ctx, "ticket/"+q.Ticket)
	}
	return s.store.get(ctx, "name/"+q.Name)
}

// open returns the store of a URL.
func open(url string) (store, error) {
	kind, where, _ := strings.Cut(url, ":")
	switch kind {
	case "file":
		return openFile(where)
	case "etcd":
		return &etcd{url: strings.TrimSuffix(where, "/") + "/v3/kv/range"}, nil
	case "redis":
		return newRedis(where), nil
	}
	return nil, fmt.Errorf("-store=%s: want file:PATH, etcd:http://HOST:PORT or redis:HOST:PORT", url)
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:9000", "host:port, or unix:PATH")
	where := flag.String("store", "file:routes.json", "file:PATH, etcd:http://HOST:PORT or redis:HOST:PORT")
	tokenFile := flag.String("token-file", "", "holds the token that the gateway shows by its -ask-token-file")
	flag.Parse()
	s := &service{}
	if *tokenFile != "" {
		text, err := os.ReadFile(*tokenFile)
		if err != nil {
			return err
		}
		if s.token = strings.TrimSpace(string(text)); s.token == "" {
			return fmt.Errorf("%s is empty", *tokenFile)
		}
	}
	var err error
	if s.store, err = open(*where); err != nil {
		return err
	}
	network, addr := "tcp", *listen
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
		os.Remove(path) // of the one before, which is gone
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		<-ctx.Done()
		patience, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		ended <- server.Shutdown(patience)
	}()
	log.Printf("asks %s, listens on %s", *where, ln.Addr())
	if err := server.Serve(ln); err != http.ErrServerClosed {
		return err
	}
	return <-ended
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
