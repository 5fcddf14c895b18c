package snapshots

import (
	"slices"
	"strconv"

	"github.com/galleyfs/galley/overlay"
)

// Ranges of layers ascend and do not touch each other's inside. They come from
// files that may have been tampered with, so nothing here takes time in how
// many layers a range claims to have.

// addLayer is ranges with n, which is above them.
func addLayer(ranges []overlay.Range, n overlay.LayerID) []overlay.Range {
	out := append([]overlay.Range(nil), ranges...)
	if k := len(out); k > 0 && out[k-1].To+1 == n {
		out[k-1].To = n
		return out
	}
	return append(out, overlay.Range{From: n, To: n})
}

// join sorts ranges that have no layer in common and joins those that touch.
func join(ranges []overlay.Range) []overlay.Range {
	slices.SortFunc(ranges, func(a, b overlay.Range) int { return int(a.From) - int(b.From) })
	out := ranges[:0]
	for _, r := range ranges {
		if k := len(out); k > 0 && out[k-1].To+1 == r.From && r.From != 0 && out[k-1].To != -1 {
			out[k-1].To = r.To
			continue
		}
		out = append(out, r)
	}
	return out
}

func overlaps(a, b []overlay.Range) bool {
	for _, x := range a {
		for _, y := range b {
			if x.From <= y.To && y.From <= x.To {
				return true
			}
		}
	}
	return false
}

func contains(ranges []overlay.Range, n overlay.LayerID) bool {
	return overlaps(ranges, []overlay.Range{{From: n, To: n}})
}

// without is ranges a less the layers of b.
func without(a, b []overlay.Range) []overlay.Range {
	out := append([]overlay.Range(nil), a...)
	for _, y := range b {
		var next []overlay.Range
		for _, x := range out {
			if y.To < x.From || x.To < y.From {
				next = append(next, x)
				continue
			}
			if x.From < y.From {
				next = append(next, overlay.Range{From: x.From, To: y.From - 1})
			}
			if y.To < x.To {
				next = append(next, overlay.Range{From: y.To + 1, To: x.To})
			}
		}
		out = next
	}
	return out
}

func layerDir(l overlay.LayerID) string { return strconv.Itoa(int(l)) }

// layerNumber is the number of the layer in a directory of that name.
func layerNumber(name string) (overlay.LayerID, bool) {
	n, err := strconv.ParseInt(name, 10, 32)
	if err != nil || layerDir(overlay.LayerID(n)) != name {
		return 0, false
	}
	return overlay.LayerID(n), true
}
