package main

import (
	"io"
	"net"
	"sync"
)

// ioCopyProxy is the plain proxy that any Go programmer would write: a
// goroutine for each direction, and io.Copy, which splices on Linux. It takes
// its backends in turn.
func ioCopyProxy(ln net.Listener, backends []string) error {
	for i := 0; ; i++ {
		client, err := ln.Accept()
		if err != nil {
			return err
		}
		go forward(client, backends[i%len(backends)])
	}
}

func forward(client net.Conn, backend string) {
	defer client.Close()
	conn, err := net.Dial("tcp", backend)
	if err != nil {
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()

	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(server, client)
		server.CloseWrite()
	})
	io.Copy(client, server)
	client.(interface{ CloseWrite() error }).CloseWrite() // of TCP or of TLS
	up.Wait()
}
