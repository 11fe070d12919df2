// Package cruise is the second executor: the XDP program that carries packets of established sessions without user space, and the tables that both have in
// common.
//
// It does not decide which session is handed down when (gateway/worker does), nor on which ports (gateway). It judges nothing:
// what bpf/cruise.c does not know for sure goes up to the pipeline.
//
// Transmit is the other way round: a program that sends what workers have decided on, many frames by a call.
//
// Tables belongs to the control goroutine, but for what a worker writes of its own: its sessions (through conntrack), their marks, its line in Workers. The
// rate words are moved by everybody, by compare-and-swap.
package cruise
