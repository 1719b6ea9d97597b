//go:build ignore

// driver MODE GATEWAYS LINES MILLISECONDS TEXT; see ../suite_test.go.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"gateway/clients/go/internal/resume"
	"gateway/clients/go/tunnel"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// answer answers a request of vectors_test.go.
func answer(w []string) (string, error) {
	switch w[0] {
	case "key":
		own, err := ecdh.X25519().NewPrivateKey(unhex(w[1]))
		if err != nil {
			panic(err)
		}
		key, err := resume.ClientKey(own, [32]byte(unhex(w[2])))
		public := strings.Fields(string(resume.AppendOpen(nil, own.PublicKey().Bytes(), "x")))[1]
		return public + " " + hex.EncodeToString(key[:]), err
	case "open":
		return strings.TrimSuffix(string(resume.AppendOpen(nil, unhex(w[1]), w[2])), "\n"), nil
	case "resume":
		var n [3]uint64
		for i := range n {
			n[i], _ = strconv.ParseUint(w[3+i], 10, 64)
		}
		r := resume.Request{Ticket: w[2], Seq: n[0], From: n[1], Recv: n[2]}
		return strings.TrimSuffix(string(r.AppendSigned(nil, [32]byte(unhex(w[1])))), "\n"), nil
	}
	s := resume.NewClient()
	var ticket string
	var reads []byte
	for _, step := range w[2:] {
		what, value, _ := strings.Cut(step, ":")
		switch what {
		case "receive":
			for _, b := range unhex(value) {
				if err := s.Input([]byte{b}); err != nil {
					return "", err
				}
				if h, ok := s.Hello(); ok {
					ticket = h.Ticket
					s.SetKey([32]byte(unhex(w[1])))
				}
			}
		case "write":
			s.Send(unhex(value))
			s.Output(nil, 1<<20, 0)
		case "finish":
			s.Finish()
			s.Output(nil, 1<<20, 0)
		case "resume":
			s.Reattach(ticket)
		}
		b := make([]byte, 4096)
		n := s.Take(b)
		reads = append(reads, b[:n]...)
		s.Pass(s.AtEnd(), 0)
	}
	line := strings.TrimSuffix(string(s.Reattach(ticket)), "\n")
	return fmt.Sprintf("%s %x %x", line, s.Output(nil, 1<<20, 0), reads), nil
}

func vectors() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		text, err := answer(strings.Fields(in.Text()))
		if err != nil {
			text = "refused"
		}
		fmt.Println(text)
	}
}

// dial connects to host:port, or to tls://host:port, trusting the authority in $CA.
func dial(ctx context.Context, gateway string) (net.Conn, error) {
	address, secure := strings.CutPrefix(gateway, "tls://")
	if !secure {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	config := new(tls.Config)
	if ca := os.Getenv("CA"); ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(text)
	}
	return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
}

// again is the tunnel that is told to reconnect, in the mode of that name.
var again atomic.Pointer[tunnel.Conn]

// reconnect calls Reconnect in each event, up to the 20th success.
func reconnect() func(tunnel.Event) {
	backs := 0
	return func(e tunnel.Event) {
		if e.Kind == tunnel.Back {
			backs++
		}
		if c := again.Load(); c != nil && e.Kind != tunnel.Ended && backs <= 20 {
			c.Reconnect()
		}
	}
}

func talk(mode, text string, d *tunnel.Dialer, line string) (string, error) {
	c, err := d.Dial(context.Background(), line)
	if err != nil {
		return "", err
	}
	defer func() {
		c.Close()
		if c.Resumable() {
			<-c.Done() // else the end does not arrive
		}
	}()
	if mode == "again" {
		again.Store(c)
		c.Reconnect()
		go func() {
			for range 50 {
				c.Reconnect()
				time.Sleep(time.Millisecond)
			}
		}()
	}
	switch mode {
	case "told", "silent", "leave":
		d.Timeout = resumeTimeout
		return stick(mode, text, c)
	}
	if mode != "bulk" && mode != "again" {
		if _, err := io.WriteString(c, text); err != nil {
			return "", err
		}
		if err := c.CloseWrite(); err != nil {
			return "", err
		}
		got, err := io.ReadAll(c)
		kind := "plain"
		if c.Resumable() {
			kind = "resumable"
		}
		return "ok " + kind + " " + string(got), err
	}
	n, _ := strconv.Atoi(text)
	want, got := make([]byte, n), make([]byte, n)
	for i := range want {
		want[i] = byte(i*7 + i/251)
	}
	for at := 0; at < n; at += 4096 {
		to := min(n, at+4096)
		if _, err := c.Write(want[at:to]); err != nil {
			return "", err
		}
		if _, err := io.ReadFull(c, got[at:to]); err != nil {
			return "", err
		}
	}
	how := "resumed"
	if c.Resumes() == 0 {
		how = "not resumed"
	}
	if !bytes.Equal(got, want) {
		return "other bytes", nil
	}
	return fmt.Sprintf("ok %d %s", n, how), nil
}

var resumeTimeout time.Duration

// stick writes all at once, while it reads, into a connection that takes nothing more.
func stick(mode, text string, c *tunnel.Conn) (string, error) {
	n, _ := strconv.Atoi(text)
	want, got := make([]byte, n), make([]byte, n)
	for i := range want {
		want[i] = byte(i*7 + i/251)
	}
	var read atomic.Int64
	done := make(chan error, 2)
	go func() {
		_, err := c.Write(want)
		done <- err
	}()
	go func() {
		for at := 0; at < n; {
			m, err := c.Read(got[at:])
			if err != nil {
				done <- err
				return
			}
			at += m
			read.Store(int64(at))
		}
		done <- nil
	}()
	if mode != "silent" {
		for last, rests := int64(-1), 0; rests < 100; {
			if rests++; read.Load() != last {
				rests = 0
			}
			last = read.Load()
			time.Sleep(10 * time.Millisecond)
		}
		if int(read.Load()) == n {
			return "not stuck", nil
		}
	}
	switch mode {
	case "told":
		c.Reconnect()
	case "leave":
		began := time.Now()
		c.Close()
		if took := time.Since(began); took > time.Second {
			return fmt.Sprintf("closed after %v", took), nil
		}
		return "closed in time", nil
	}
	for range 2 {
		if err := <-done; err != nil {
			return "", err
		}
	}
	if !bytes.Equal(got, want) || c.Resumes() == 0 {
		return fmt.Sprintf("other bytes, or %d resumes", c.Resumes()), nil
	}
	return fmt.Sprintf("ok %d resumed", n), nil
}

func main() {
	if os.Args[1] == "vectors" {
		vectors()
		return
	}
	lines := strings.Split(os.Args[3], ",")
	timeout, _ := strconv.Atoi(os.Args[4])
	d := &tunnel.Dialer{
		Gateways:    strings.Split(os.Args[2], ","),
		DialContext: dial,
		Plain:       os.Args[1] == "talk",
		Timeout:     time.Duration(timeout) * time.Millisecond,
		Hold:        10 * time.Second,
		OnEvent:     reconnect(),
		NewLine: func(context.Context, error) (string, error) {
			return strings.Join(lines[1:], ""), nil
		},
	}
	switch os.Args[1] {
	case "told", "silent", "leave":
		d.Timeout = 60 * time.Second // dialling is not what is tested
		resumeTimeout = time.Duration(timeout) * time.Millisecond
	}
	switch os.Args[1] {
	case "told", "leave":
		d.Silence, d.Patience = time.Minute, time.Minute
	case "silent":
		d.Silence, d.Patience = 500*time.Millisecond, 500*time.Millisecond
	}
	said, err := talk(os.Args[1], os.Args[5], d, lines[0])
	if err != nil {
		said = fmt.Sprintf("error %d %v", tunnel.StatusOf(err), tunnel.AdviceOf(err))
	}
	fmt.Println(said)
}
