package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// bench is one whole run.
type bench struct {
	*options
	work  string
	first string // the tree of which each round has a copy
	base  string // the round's copy, under all of its views; nobody writes to it
	place string // the round's disk
	in    string // what pieces of work take from outside of the tree
	env   []string
	root  who
	plain who // the ordinary user

	mu      sync.Mutex // guards targets and disks, which an interrupt looks at
	targets []*target  // of the current round
	disks   []*disk

	samples map[rowKey][]sample
	figures []written
}

// rowKey names a cell of the tables.
type rowKey struct{ user, work, kind string }

func newBench(o *options) (*bench, error) {
	u, err := user.Lookup(o.user)
	if err != nil {
		return nil, fmt.Errorf("the ordinary user: %w (make bench creates it)", err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	dir, err := os.MkdirTemp(o.dir, "galley-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{options: o, work: dir, samples: make(map[rowKey][]sample)}
	b.dir = dir
	b.first, b.in = dir+"/first", dir+"/in"
	b.root = who{name: "root", home: dir + "/home-root"}
	b.plain = who{name: o.user, uid: uint32(uid), gid: uint32(gid), home: dir + "/home-user"}
	if err := os.Chmod(dir, 0o777); err != nil {
		return nil, err
	}
	// The programs must be readable by the ordinary user.
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for name, from := range map[string]string{
		"bench": self, "galley": o.galley, "galley-guest": filepath.Join(filepath.Dir(o.galley), "galley-guest"),
	} {
		if out, err := exec.Command("cp", from, filepath.Join(dir, name)).CombinedOutput(); err != nil && name == "bench" {
			return nil, fmt.Errorf("copy %s: %s", from, out)
		}
	}
	b.galley = dir + "/galley"
	b.env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "BENCH=" + dir + "/bench", "IN=" + b.in,
		"GOFLAGS=-buildvcs=false -trimpath", "GOPROXY=off", "GOTELEMETRY=off", "CGO_ENABLED=0",
		"GIT_CONFIG_COUNT=5", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		"GIT_CONFIG_KEY_1=user.name", "GIT_CONFIG_VALUE_1=b", "GIT_CONFIG_KEY_2=user.email", "GIT_CONFIG_VALUE_2=b@example.com",
		// Nothing in the background, where it would count for somebody else's work.
		"GIT_CONFIG_KEY_3=gc.auto", "GIT_CONFIG_VALUE_3=0", "GIT_CONFIG_KEY_4=maintenance.auto", "GIT_CONFIG_VALUE_4=false",
		"npm_config_update_notifier=false", "npm_config_audit=false", "npm_config_fund=false", "npm_config_logs_max=0",
	}
	return b, nil
}

// cleanUp unmounts and removes everything.
func (b *bench) cleanUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.targets {
		b.unmount(t)
	}
	for _, d := range b.disks {
		if err := d.remove(); err != nil {
			log.Print(err)
		}
	}
	if err := exec.Command("rm", "-rf", "--one-file-system", b.work).Run(); err != nil {
		log.Printf("remove %s: %v", b.work, err)
	}
}

// makeTrees makes the base and what the pieces of work take in, as the
// ordinary user, so that both users can change all of it.
func (b *bench) makeTrees() error {
	if err := b.must(b.root, "/", fmt.Sprintf("mkdir -m 0777 %s %s %s %s", b.first, b.in, b.root.home, b.plain.home)); err != nil {
		return err
	}
	// The source tree is the directory in which bench was started; the
	// ordinary user may not be able to read it.
	src := fmt.Sprintf("mkdir -m 0777 %s/module && tar -cf - $(git ls-files -co --exclude-standard) | tar -xf - -C %s/module", b.first, b.first)
	cmd := exec.Command("sh", "-euc", src+fmt.Sprintf(" && cd %s/module && go mod vendor && chown -R %s: .", b.first, b.user))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy the source: %w\n%s", err, out)
	}
	s := b.scale
	script := fmt.Sprintf(`
mkdir repo five six app
files() { # DIR COUNT PER_DIRECTORY: small files of some hundred bytes
	awk -v dir="$1" -v n="$2" -v per="$3" 'BEGIN {
		for (i = 0; i < n; i++) {
			d = dir "/d" int(i / per)
			if (i %% per == 0) system("mkdir -p " d)
			f = d "/f" (i %% per)
			for (k = 0; k < 5 + i %% 40; k++) print "line", k, "of file", i, "some text to read" > f
			close(f)
		}
	}'
}
files repo %d 100
files five %d 100
files six %d 100
cd repo
git init -q -b main .
git add .
git commit -q -m first
git checkout -q -b other
for d in d1 d2 d3 d4 d5; do for f in $d/*; do echo other >> $f; done; done
git rm -q -r d6
git commit -q -a -m other
git checkout -q main
git gc -q
git status --porcelain
cd ..
$BENCH op seq-write %d big
mkdir $IN/files
mkdir -p $IN/pkg/lib
`, s.repoFiles, s.dirFiles, s.dirFiles, s.bigSize>>20)
	script += fmt.Sprintf(`
mv six $IN/keep-six
files $IN/files %d 100
tar -cf $IN/files.tar -C $IN/files .
mv $IN/keep-six six
for i in $(seq 1 %d); do echo "module.exports = $i" > $IN/pkg/lib/m$i.js; done
echo '{"name":"pkg","version":"1.0.0"}' > $IN/pkg/package.json
(cd $IN/pkg && npm pack --silent --pack-destination $IN)
echo "{\"name\":\"app\",\"version\":\"1.0.0\",\"dependencies\":{\"pkg\":\"file:$IN/pkg-1.0.0.tgz\"}}" > app/package.json
{ echo 'pragma journal_mode=wal; pragma synchronous=normal; create table t(a integer primary key, b text);'
  for i in $(seq 1 3000); do echo "insert into t(b) values('some text of row $i');"; done; } > $IN/one.sql
echo "pragma journal_mode=wal; create table t(a integer primary key, b text);
with recursive n(x) as (select 1 union all select x+1 from n where x<200000)
insert into t select x, 'some text of row ' || x from n; create index i on t(b);" > $IN/bulk.sql
`, s.newFiles, s.newFiles/10)
	return b.must(b.plain, b.first, script)
}

// round measures every row on every kind once.
func (b *bench) round(round int) error {
	for _, w := range b.users() {
		if err := b.roundAs(w, round); err != nil {
			return err
		}
	}
	return nil
}

// users are those as whom to measure.
func (b *bench) users() []who {
	return slices.DeleteFunc([]who{b.root, b.plain}, func(w who) bool { return !b.as.MatchString(w.name) })
}

func (b *bench) roundAs(w who, round int) error {
	// A tree for each kind, a large file and a copied-up one in each.
	d, err := b.newDisk(fmt.Sprintf("disk-%s-%d", w.name, round), 14*b.scale.bigSize+8<<30)
	if err != nil {
		return err
	}
	defer func() {
		if err := d.remove(); err != nil {
			log.Print(err)
		}
	}()
	b.place, b.base = d.dir, d.dir+"/base"
	// The status is the index's of the repository, which notes inodes.
	if err := b.must(b.plain, "/", fmt.Sprintf("cp -a %s %s && git -C %[2]s/repo status --porcelain", b.first, b.base)); err != nil {
		return err
	}
	for _, k := range kinds {
		if k.rootOnly && w.uid != 0 || k.mount != nil && !b.kinds.MatchString(k.name) {
			continue
		}
		t, err := b.newTarget(k, w)
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.targets = append(b.targets, t)
		b.mu.Unlock()
		b.mount(t)
		if t.err != nil {
			log.Printf("%s as %s is left out: %v", k.name, w.name, t.err)
		}
	}
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, t := range b.targets {
			b.unmount(t)
		}
		b.targets = nil
	}()
	for i, wk := range works(b.scale) {
		if !b.only.MatchString(wk.name) {
			continue
		}
		for j := range b.targets {
			// Another one begins each time.
			t := b.targets[(i+j+round)%len(b.targets)]
			if t.err != nil {
				continue
			}
			if err := b.one(wk, t, round); err != nil {
				log.Printf("%s on %s as %s: %v", wk.name, t.kind.name, w.name, err)
			}
		}
	}
	return nil
}

// one measures one piece of work on one target.
func (b *bench) one(wk work, t *target, round int) error {
	token := fmt.Sprintf("TOKEN=%s-%d-%d\n", filepath.Base(t.place), round, time.Now().UnixNano())
	if err := b.must(t.who, t.dir, prefix(token, wk.prepare)); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if wk.cold {
		if err := b.remount(t); err != nil {
			return err
		}
	}
	s, err := b.measure(t.who, t.dir, token+wk.run, t.servers())
	if err != nil {
		return err
	}
	log.Printf("%-14s %-40s %-18s cpu %8.1f ms  wall %8.1f ms %s", t.who.name, wk.name, t.kind.name, ms(s.cpu), ms(s.wall), s.note)
	key := rowKey{t.who.name, wk.name, t.kind.name}
	b.samples[key] = append(b.samples[key], s)
	return nil
}

// prefix leaves an empty text empty.
func prefix(token, script string) string {
	if script == "" {
		return ""
	}
	return token + script
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// host describes the machine, for the head of the tables.
func host() string {
	out, err := exec.Command("uname", "-sr").Output()
	if err != nil {
		return "unknown"
	}
	cpus := 0
	model := ""
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for _, line := range strings.Split(string(text), "\n") {
			if key, val, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				cpus++
				model = strings.TrimSpace(val)
			}
		}
	}
	return fmt.Sprintf("%s, %d × %s", strings.TrimSpace(string(out)), cpus, model)
}
