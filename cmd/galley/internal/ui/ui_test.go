package ui

import (
	"strings"
	"testing"
	"time"
)

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB", 5 << 40: "5.0 TiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59 * time.Second: "59 s", 90 * time.Second: "1 min", 47 * time.Hour: "47 h", 49 * time.Hour: "2 days",
	} {
		if got := Age(now, now.Add(-d)); got != want {
			t.Errorf("Age(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	if err := Table(&b, [][]string{{"NAME", "SIZE"}, {"größe", "1"}, {"x", "22"}}); err != nil {
		t.Fatal(err)
	}
	if want := "NAME   SIZE\ngröße  1\nx      22\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestAsk(t *testing.T) {
	for in, want := range map[string]bool{"y\n": true, "YES\n": true, " yes \n": true, "\n": false, "": false, "yep\n": false, "n\ny\n": false} {
		var out strings.Builder
		got, err := Ask(&out, strings.NewReader(in), "sure?")
		if err != nil || got != want {
			t.Errorf("answer %q: %v, %v; want %v", in, got, err, want)
		}
	}
}

// What comes after the answer belongs to whoever reads next.
func TestAskTakesOneLine(t *testing.T) {
	r := strings.NewReader("y\nrest")
	if _, err := Ask(&strings.Builder{}, r, "sure?"); err != nil {
		t.Fatal(err)
	}
	if r.Len() != len("rest") {
		t.Errorf("%d bytes left, want %d", r.Len(), len("rest"))
	}
}

func TestProgressOfShortWorkIsSilent(t *testing.T) {
	var b strings.Builder
	p := NewProgress(&b, true, "working")
	p.Set(1, 2)
	p.Close()
	p.Close()
	if b.String() != "" {
		t.Errorf("printed %q", b.String())
	}
	var none *Progress
	none.Set(1, 2)
	none.What("x")
	none.Close()
}
