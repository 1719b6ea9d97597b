//go:build !unix

package web

import "net"

func readable(net.Conn) bool { return false }
