// Package worker is the data-plane thread: it takes frames from its sockets, has the pipeline judge them, and sends, frees or passes them on.
//
// It does not decide anything about a packet and knows no policy. One goroutine, locked to its thread and pinned if asked, owns its sockets,
// memory areas, shard and shaper; others reach it only by the view pointer, the mailbox (Do), the injection queue (Transmit) and the
// hand-over rings, one for each ordered pair of workers.
//
// Frame ownership: a frame is on exactly one of: the free list, a fill ring, an rx ring, a burst, the shaper, a tx batch or ring, a completion
// ring. A frame never leaves its memory area; between areas and workers bytes are copied.
package worker
