package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Clients that speak TLS to the contender, which speaks to the backend without: messages,
// bulk, and connections with a full handshake. All contenders have a certificate of the
// same kind, and their clients never resume a session. Each measurement has a process of
// its own, and a load generator that speaks TLS by Go's library.

// measureTLS is measure for them.
func (s *suite) measureTLS(round int, w workload, e *entrant) error {
	in, err := s.launchUnproven(e, e.secured)
	if err != nil {
		return err
	}
	defer in.process.kill()
	if err := in.listens(); err != nil {
		return err
	}
	load, err := startHelper(s.fleet, roleLayered)
	if err != nil {
		return &brokenError{err}
	}
	defer load.kill()
	secured := *e
	secured.instance = in
	inside := *s
	inside.loads = []*helper{load}
	return inside.measure(round, w, &secured)
}

// haproxySecured has HAProxy speak TLS. It wants certificate and key in one file.
func haproxySecured(s site, global string) (*exec.Cmd, error) {
	both, err := certificateAndKey(s.dir)
	if err != nil {
		return nil, err
	}
	bind := "\tbind " + s.listen
	config := haproxyConfig(s, global)
	if !strings.Contains(config, bind+"\n") {
		return nil, errors.New("its configuration has no such line: " + bind)
	}
	return haproxyCommand(s, strings.Replace(config, bind, bind+" ssl crt "+both, 1))
}

// certificateAndKey writes the two into one file of a folder.
func certificateAndKey(dir string) (file string, err error) {
	cert, key, err := selfSigned(dir)
	if err != nil {
		return "", err
	}
	var both []byte
	for _, name := range []string{cert, key} {
		text, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		both = append(both, text...)
	}
	file = filepath.Join(dir, "both.pem")
	return file, os.WriteFile(file, both, 0o600)
}

// nginxSecured has nginx speak TLS.
func nginxSecured(s site, module string) (*exec.Cmd, error) {
	cert, key, err := selfSigned(s.dir)
	if err != nil {
		return nil, err
	}
	listen := "listen " + s.listen + ";"
	config := nginxConfig(s, module)
	if !strings.Contains(config, listen) {
		return nil, errors.New("its configuration has no such line: " + listen)
	}
	config = strings.Replace(config, listen, fmt.Sprintf("listen %s ssl;\n\t\tssl_certificate %s;\n\t\tssl_certificate_key %s;\n"+
		"\t\tssl_protocols TLSv1.2 TLSv1.3;", s.listen, cert, key), 1)
	file := filepath.Join(s.dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	return exec.Command(s.path, "-p", s.dir, "-c", file, "-e", "stderr"), nil
}

// ioCopySecured is the plain proxy with TLS.
func ioCopySecured(s site) (*exec.Cmd, error) {
	if _, _, err := selfSigned(s.dir); err != nil {
		return nil, err
	}
	return roleCommand(roleIOCopyTLS, append([]string{s.listen, s.dir}, s.backends...)...), nil
}
