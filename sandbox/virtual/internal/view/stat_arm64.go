package view

func nlinkOf(n uint32) uint32  { return n }
func blksizeOf(n uint32) int32 { return int32(n) }
