//go:build !unix

package logwriter

import "os"

// identity reports that there is no journal here.
func identity(*os.File) (string, bool) { return "", false }

const nonblock = 0
