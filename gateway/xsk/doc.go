// Package xsk moves frames between the kernel and user space over AF_XDP: UMEM, rings, sockets, and the XDP program that
// decides what is ours and what is the host's.
//
// It does not look into frames (the XDP program does, in the kernel), and it never waits: who waits polls FD.
//
// A UMEM and the sockets on it have one owner thread; nothing in them is locked. A Program belongs to the control
// goroutine. Each frame has one owner at any time: the free list, a socket's fill or rx ring, its tx or completion
// ring, or the caller; UMEM.Check asserts that none is lost. Functions of the hot path (Recv, Fill, Send, Complete,
// WakeRx, KickTx, Alloc, Free) do not allocate.
package xsk
