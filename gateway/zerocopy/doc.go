// Package zerocopy shows on a real driver that the gateway forwards in zero-copy mode: it boots a Linux guest under plain emulation
// with this very program as init, and judges every frame at the far side.
//
// Its tests boot one more guest, with the test itself as init: cards with four queues and an RSS table, behind taps in a network namespace, on which
// ports are prepared, spread, and put back by the gateway as a process of its own.
//
// It does not measure speed: an emulated CPU says nothing about rates, so none are printed. It does not use /dev/kvm.
//
// The host side (Main) fetches a kernel and an emulator, boots, and reads the verdict that the guest prints; QEMU's exit status is
// never a verdict. The guest side (Init) runs the gateway of package gateway on two virtio ports and drives the two network cards at
// the far ends by packet sockets. What must arrive is built whole by the frame builder of this package, which shares no code with the
// gateway's parser and rewriter. One goroutine judges; each far card has one reader.
package zerocopy
