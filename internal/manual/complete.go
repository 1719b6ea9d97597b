package manual

import (
	"fmt"
	"strings"
)

// flagWords are the flags, those that take a value with the sign that it follows.
func (h Help) flagWords() []string {
	var words []string
	for _, s := range h.all() {
		word := "-" + s.Name
		if s.Arg != "" {
			word += "="
		}
		words = append(words, word)
	}
	return words
}

// Bash is the completion for bash, which may take -name=value for three words.
func (h Help) Bash(program string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Completion of %s for bash.\n_%[1]s() {\n", program)
	b.WriteString(`	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} flag
	COMPREPLY=()
	if [[ $cur == "=" ]]; then
		flag=$prev cur=
	elif [[ $prev == "=" ]]; then
		flag=${COMP_WORDS[COMP_CWORD-2]}
	elif [[ $cur == -*=* ]]; then
		flag=${cur%%=*} cur=${cur#*=}
	else
`)
	fmt.Fprintf(&b, "\t\tCOMPREPLY=($(compgen -W '%s' -- \"$cur\"))\n", strings.Join(h.flagWords(), " "))
	b.WriteString(`		[[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
		return 0
	fi
	case $flag in
`)
	var files []string
	for _, s := range h.all() {
		if list := s.choices(); list != nil {
			fmt.Fprintf(&b, "\t-%s) COMPREPLY=($(compgen -W '%s' -- \"$cur\")) ;;\n", s.Name, strings.Join(list, " "))
		} else if s.isFile() {
			files = append(files, "-"+s.Name)
		}
	}
	if len(files) > 0 {
		fmt.Fprintf(&b, "\t%s)\n\t\tcompopt -o filenames 2>/dev/null\n\t\tmapfile -t COMPREPLY < <(compgen -f -- \"$cur\") ;;\n", strings.Join(files, "|"))
	}
	fmt.Fprintf(&b, "\tesac\n}\ncomplete -F _%s %[1]s\n", program)
	return b.String()
}

// Zsh is the completion for zsh.
func (h Help) Zsh(program string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#compdef %s\n# Completion of %[1]s for zsh.\n_arguments", program)
	escape := strings.NewReplacer(`\`, `\\`, "[", `\[`, "]", `\]`, ":", `\:`, "'", `'\''`)
	for _, s := range h.all() {
		usage := escape.Replace(s.Usage)
		if s.Arg == "" {
			fmt.Fprintf(&b, " \\\n\t'-%s[%s]'", s.Name, usage)
			continue
		}
		value := " "
		if list := s.choices(); list != nil {
			value = "(" + strings.Join(list, " ") + ")"
		} else if s.isFile() {
			value = "_files"
		}
		// "=-": the value is in the same word.
		fmt.Fprintf(&b, " \\\n\t'*-%s=-[%s]:%s:%s'", s.Name, usage, escape.Replace(s.Arg), value)
	}
	b.WriteString("\n")
	return b.String()
}

// Fish is the completion for fish. A flag with its value is one word to it.
func (h Help) Fish(program string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Completion of %s for fish.\ncomplete -c %[1]s -f\n", program)
	escape := strings.NewReplacer(`\`, `\\`, "'", `\'`)
	for _, s := range h.all() {
		usage := escape.Replace(s.Usage)
		words := []string{"-" + s.Name}
		if list := s.choices(); list != nil {
			words = nil
			for _, c := range list {
				words = append(words, "-"+s.Name+"="+c)
			}
		} else if s.isFile() {
			words = []string{"-" + s.Name + "=(__fish_complete_path (string replace -r '^[^=]*=?' '' -- (commandline -ct)))"}
			fmt.Fprintf(&b, "complete -c %s -n \"string match -q -- '-%s=*' (commandline -ct)\" -a \"%s\" -d '%s'\n", program, s.Name, words[0], usage)
			words = []string{"-" + s.Name + "="}
		} else if s.Arg != "" {
			words[0] += "="
		}
		fmt.Fprintf(&b, "complete -c %s -a '%s' -d '%s'\n", program, strings.Join(words, " "), usage)
	}
	return b.String()
}
