//go:build !race

package realwork

var raceFlags []string
