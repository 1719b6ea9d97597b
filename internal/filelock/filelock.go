// Package filelock locks single bytes of a file for the process. The operating
// system drops a lock when its process ends, however it ends, so a locked byte
// is proof of a living process where a number in a file is not.
//
// On Unix the locks are those of fcntl(2): they belong to the process, they do
// not exclude goroutines of one process from each other, and closing any
// descriptor of the file drops them all. A process therefore opens the file
// once.
package filelock
