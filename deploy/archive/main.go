// Archive does what deploy/dist.sh takes no other tool for: a zip with the same bytes
// whenever it is made, and the bill of materials of a program.
//
//	archive zip FOLDER SECONDS >FILE      the folder and what is in it, with that Unix time
//	archive sbom PROGRAM VERSION SECONDS >FILE
package main

import (
	"archive/zip"
	"bufio"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	out := bufio.NewWriter(os.Stdout)
	err := run(out, os.Args[1:])
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("want zip FOLDER SECONDS or sbom PROGRAM VERSION SECONDS")
	}
	seconds, err := strconv.ParseInt(args[len(args)-1], 10, 64)
	if err != nil {
		return fmt.Errorf("the time: %w", err)
	}
	at := time.Unix(seconds, 0).UTC()
	switch {
	case args[0] == "zip" && len(args) == 3:
		return writeZip(w, args[1], at)
	case args[0] == "sbom" && len(args) == 4:
		return writeBill(w, args[1], args[2], at)
	}
	return fmt.Errorf("want zip FOLDER SECONDS or sbom PROGRAM VERSION SECONDS")
}

// writeZip writes the files of a folder below the folder's own name, in their order.
func writeZip(w io.Writer, folder string, at time.Time) error {
	z := zip.NewWriter(w)
	err := filepath.WalkDir(folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(folder, name)
		if err != nil {
			return err
		}
		h := &zip.FileHeader{
			Name:     path.Join(filepath.Base(folder), filepath.ToSlash(inside)),
			Method:   zip.Deflate,
			Modified: at,
		}
		h.SetMode(0o644 | info.Mode()&0o111)
		f, err := z.CreateHeader(h)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	return z.Close()
}

// A bill of materials in the form of CycloneDX 1.5 (ECMA-424).
type (
	bill struct {
		BOMFormat    string       `json:"bomFormat"`
		SpecVersion  string       `json:"specVersion"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Timestamp string    `json:"timestamp"`
		Component component `json:"component"`
	}
	component struct {
		Type    string `json:"type"`
		Ref     string `json:"bom-ref"`
		Name    string `json:"name"`
		Version string `json:"version"`
		URL     string `json:"purl,omitempty"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn,omitempty"`
	}
)

// writeBill writes what is linked into a program of Go, by what the program itself says.
func writeBill(w io.Writer, program, version string, at time.Time) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	main := component{Type: "application", Ref: info.Main.Path, Name: info.Main.Path, Version: version}
	b := bill{BOMFormat: "CycloneDX", SpecVersion: "1.5", Version: 1,
		Metadata: metadata{Timestamp: at.Format(time.RFC3339), Component: main}}
	add := func(name, version string) {
		url := "pkg:golang/" + name + "@" + strings.ReplaceAll(version, "+", "%2B")
		b.Components = append(b.Components, component{Type: "library", Ref: url, Name: name, Version: version, URL: url})
	}
	add("std", strings.TrimPrefix(info.GoVersion, "go"))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		add(m.Path, m.Version)
	}
	d := dependency{Ref: main.Ref}
	for _, c := range b.Components {
		d.DependsOn = append(d.DependsOn, c.Ref)
	}
	b.Dependencies = []dependency{d}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(b)
}
