#needs: go
#ignore: ^\.gocache$
export GOCACHE="$PWD/.gocache"
mkdir -p greet cmd/hello
cat >go.mod <<X
module example.com/hello

go 1.21
X
cat >greet/greet.go <<X
// Package greet greets.
package greet

import "strings"

// Hello greets name.
func Hello(name string) string { return "hello, " + strings.ToLower(name) }
X
cat >greet/greet_test.go <<X
package greet

import "testing"

func TestHello(t *testing.T) {
	if got := Hello("World"); got != "hello, world" {
		t.Fatal(got)
	}
}
X
cat >cmd/hello/main.go <<X
package main

import "example.com/hello/greet"

func main() { println(greet.Hello("Proof")) }
X
go build -o hello ./cmd/hello
go test ./... >/dev/null
#--- build
export GOCACHE="$PWD/.gocache"
go build -o hello ./cmd/hello
./hello 2>&1
#--- an edit that breaks the test, and the build again
export GOCACHE="$PWD/.gocache"
sed -i 's/hello, "/good day, "/' greet/greet.go
go build -o hello ./cmd/hello
./hello 2>&1
go test ./... >/dev/null 2>&1 || echo "the test fails, as it should"
sed -i 's/hello, world/good day, world/' greet/greet_test.go
go test ./... 2>&1 | sed 's/[0-9.]*s$//; s/(cached)//'
go vet ./...
gofmt -l .
#--- move a package
export GOCACHE="$PWD/.gocache"
mv greet polite
sed -i 's,hello/greet,hello/polite,; s/greet\.Hello/greet.Hello/' cmd/hello/main.go
go build -o hello ./cmd/hello
./hello 2>&1
go list ./...
