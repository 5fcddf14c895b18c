// Package realwork runs real programs on a copy of a tree and inside `galley
// run`, and compares what they said and what they left. Its cases are shell
// scripts in testdata.
package realwork

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// script is one case: a text of shell, in parts that lines beginning with
// "#---" separate. The first part makes the tree, outside of Galley; each of
// the others is one piece of work, with a `galley run` of its own.
//
// Lines at its beginning may say
//
//	#needs: COMMAND...     programs that the case cannot do without
//	#ignore: REGEXP        paths whose difference means nothing (with all below)
//	#content: REGEXP       files whose bytes, or pipes whose times, differ from run to run
//	#status: N             exit status of the last part (default 0)
//	#network               the case talks to a package registry
type script struct {
	needs   []string
	ignore  *regexp.Regexp
	content *regexp.Regexp
	status  int
	network bool
	setup   string
	work    []string
}

func parse(text string) (*script, error) {
	s := &script{}
	var head string
	parts := strings.Split("\n"+text, "\n#---")
	head, s.setup = parts[0], parts[0]
	for _, p := range parts[1:] {
		_, body, _ := strings.Cut(p, "\n")
		s.work = append(s.work, body)
	}
	if len(s.work) == 0 {
		return nil, fmt.Errorf("no line that begins with #---, so no work")
	}
	for _, line := range strings.Split(head, "\n") {
		key, val, _ := strings.Cut(line, ":")
		val = strings.TrimSpace(val)
		var err error
		switch key {
		case "#needs":
			s.needs = strings.Fields(val)
		case "#ignore":
			s.ignore, err = regexp.Compile(val)
		case "#content":
			s.content, err = regexp.Compile(val)
		case "#status":
			s.status, err = strconv.Atoi(val)
		case "#network":
			s.network = true
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	return s, nil
}

// matcher is nil for a nil expression, as treecmp.Options wants it.
func matcher(re *regexp.Regexp) func(string) bool {
	if re == nil {
		return nil
	}
	return re.MatchString
}
