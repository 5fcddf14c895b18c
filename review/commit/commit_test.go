package commit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// sample has a bit of everything.
const sample = `
umask 022
mkdir -p src/deep/er docs/img empty keep
for i in 1 2 3 4 5 6 7 8 9; do echo "file $i" >src/f$i; done
echo top >README; echo other >NOTES; echo a >docs/a; echo b >docs/b; echo i >docs/img/i
echo deep >src/deep/er/x; ln -s ../README src/link; echo A >swap1; echo B >swap2
chmod 0640 NOTES; touch -d '2001-02-03 04:05:06.789' README NOTES src/f1
`

var cases = []struct{ name, base, session string }{
	{"modify", sample, `echo more >>README`},
	{"add", sample, `echo new >new; mkdir -p a/b/c; echo x >a/b/c/x; touch -d @1000000000.5 a/b/c/x`},
	{"add below base directory", sample, `echo new >src/deep/er/new`},
	{"delete", sample, `rm README src/f3`},
	{"delete directory", sample, `rm -r docs`},
	{"delete nested with base siblings", sample, `rm -r src/deep; rmdir empty`},
	{"rename file", sample, `mv README READTHIS`},
	{"rename into new directory", sample, `mkdir -p new/sub; mv README new/sub/; echo x >new/sub/y`},
	{"rename out of deleted directory", sample, `mv docs/img/i kept; rm -r docs`},
	{"rename and edit", sample, `mv README R2; echo more >>R2`},
	{"rename case only", sample, `mv README readme`},
	{"rename directory", sample, `mv docs papers`},
	{"rename directory and change below", sample, `mv docs papers; rm papers/a; echo more >>papers/b; echo n >papers/img/n; mv papers/img pics`},
	{"rename directory into itself", sample, `mv docs d2; mkdir docs; mv d2 docs/old`},
	{"rename parent and child apart", sample, `mv src/deep/er er; mv src/deep s2; mv src s3`},
	{"swap files", sample, `mv swap1 t; mv swap2 swap1; mv t swap2`},
	{"swap directories", sample, `mv docs t; mv src docs; mv t src; echo x >src/x; rm docs/f1`},
	{"rotate", sample, `mv README t; mv NOTES README; mv swap1 NOTES; mv t swap1`},
	{"rename over deleted", sample, `rm -r docs; mv src docs`},
	{"replace by rename", sample, `echo saved >.tmp; mv .tmp README`},
	{"file to directory", sample, `rm README; mkdir README; echo x >README/x`},
	{"directory to file", sample, `rm -r docs; echo now a file >docs`},
	{"directory to link", sample, `rm -r docs; ln -s src docs`},
	{"link to directory", sample, `rm src/link; mkdir src/link; echo x >src/link/x`},
	{"directory made again", sample, `rm -r docs; mkdir docs; echo x >docs/x`},
	{"link target", sample, `ln -sf nowhere src/link`},
	{"modes", sample, `chmod 0600 README; chmod 0700 docs; chmod 0755 NOTES; chmod 0711 .`},
	{"mode of new", sample, `echo x >x; chmod 0400 x; mkdir d; chmod 01777 d`},
	{"empty directories", sample, `mkdir -p e1/e2/e3`},
	{"hard links", sample, `echo l >l1; ln l1 l2; mkdir d; ln l1 d/l3`},
	{"hard link to moved", sample, `mv README R; ln R R2`},
	{"hole", sample, `truncate -s 3M big; printf x | dd of=big bs=1 seek=2000000 conv=notrunc status=none; truncate -s 1M only`},
	{"xattrs", sample, `setfattr -n user.a -v 1 README; setfattr -n user.b -v 2 docs; echo n >n; setfattr -n user.c -v 3 n`},
	{"closed directories", sample + `
		mkdir -p ro/in; echo x >ro/x; echo y >ro/in/y; mkdir gone; mkdir gone/in; echo z >gone/in/z; chmod 0555 ro ro/in gone gone/in`,
		`chmod -R u+w ro gone; echo n >ro/in/n; rm ro/x; rm -r gone; chmod 0555 ro ro/in; mkdir new; echo k >new/k; chmod 0555 new`},
	{"closed directory moves", sample + `mkdir -p ro/in; echo y >ro/in/y; chmod 0555 ro/in ro`,
		`chmod u+w ro/in ro; mv ro moved; echo z >moved/in/z; chmod 0555 moved/in moved`},
	{"long names", sample, `n=$(printf '%0255d' 7); mkdir $n; echo x >$n/$n; mv README $n/r`},
	{"odd names", sample, `d=$(printf 'x\ny'); mkdir "$d"; echo 1 >"$d/-rf"; echo 2 >"$(printf '\033[1A\377')"; echo 3 >' '; rm README; echo 4 >'a b%41'`},
	{"everything", sample, `mv docs papers; rm papers/a; echo more >>papers/b; mv swap1 t; mv swap2 swap1; mv t swap2
		rm -r empty; echo x >empty; rm README; mkdir README; echo x >README/x; chmod 0700 keep; for i in 1 2 3; do rm src/f$i; done
		for i in 4 5 6; do echo more >>src/f$i; done; mv src/f7 src/f9b; mkdir -p n/e/w; echo 1 >n/e/w/1; mv src/deep n/e/deep; echo l >l1; ln l1 l2`},
}

func TestCommitMakesTheSessionsTree(t *testing.T) {
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			w := newWorld(t, t.TempDir(), c.base)
			w.session(c.session)
			want := w.image(w.want)
			res, err := w.commit(hostfs.OS, keepAll)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, w.image(w.base)); diff != "" {
				t.Errorf("base after the commit (-session +base):\n%s", diff)
			}
			if s := w.stray(); s != nil {
				t.Errorf("left behind: %q", s)
			}
			for _, a := range res.Applied {
				if a.ID.Ino != 0 && statx(t, filepath.Join(w.base, a.Path)).Ino != a.ID.Ino {
					t.Errorf("%q is reported as another inode than it is", a.Path)
				}
			}
			if _, err := os.Stat(filepath.Join(w.dir, "commits", "1", journalName)); err != nil {
				t.Error(err)
			}
		})
	}
}
