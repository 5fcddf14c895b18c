package view

func nlinkOf(n uint32) uint64  { return uint64(n) }
func blksizeOf(n uint32) int64 { return int64(n) }
