package realwork

import "testing"

func TestParse(t *testing.T) {
	s, err := parse("#needs: git  make\n#ignore: ^x$\n#status: 3\necho setup\n#--- one\necho 1\n#--- two\necho 2\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.needs) != 2 || s.status != 3 || !s.ignore.MatchString("x") || s.content != nil || s.network {
		t.Errorf("header is %+v", s)
	}
	if len(s.work) != 2 || s.work[0] != "echo 1" || s.work[1] != "echo 2\n" {
		t.Errorf("work is %q", s.work)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"echo no work\n", "#status: many\n#---\n", "#ignore: (\n#---\n"} {
		if _, err := parse(text); err == nil {
			t.Errorf("parse(%q) gave no error", text)
		}
	}
}
