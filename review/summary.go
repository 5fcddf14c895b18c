package review

import (
	"fmt"
	"strings"
)

// Summary says in one line how many changes of which kind there are:
// "12 files changed: 3 added, 8 modified, 1 deleted". Everything that is not a
// directory counts as a file; directories are counted only by themselves
// ("1 directory renamed"). Without changes it is "no changes".
func Summary(cs *ChangeSet) string {
	if cs.Empty() {
		return "no changes"
	}
	kinds := []Kind{Added, Modified, Deleted, Renamed, MetaOnly, TypeChanged}
	words := map[Kind]string{Added: "added", Modified: "modified", Deleted: "deleted", Renamed: "renamed",
		MetaOnly: "with other metadata", TypeChanged: "of another type"}
	files, dirs := map[Kind]int{}, map[Kind]int{}
	nFiles, nDirs := 0, 0
	for i := range cs.Changes {
		if c := &cs.Changes[i]; c.IsDir() {
			dirs[c.Kind]++
			nDirs++
		} else {
			files[c.Kind]++
			nFiles++
		}
	}
	list := func(n map[Kind]int) string {
		var parts []string
		for _, k := range kinds {
			if n[k] > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", n[k], words[k]))
			}
		}
		return strings.Join(parts, ", ")
	}
	var parts []string
	if nFiles > 0 {
		parts = append(parts, fmt.Sprintf("%d file%s changed: %s", nFiles, plural(nFiles), list(files)))
	}
	if nDirs > 0 {
		word := "directories"
		if nDirs == 1 {
			word = "directory"
		}
		parts = append(parts, fmt.Sprintf("%d %s: %s", nDirs, word, list(dirs)))
	}
	return strings.Join(parts, "; ")
}
