// Package build makes the packets that the gateway sends by itself: ICMP errors, echo replies, TCP resets, ARP and neighbour
// discovery.
//
// It does not decide whether to send one beyond what the protocols forbid outright, does not limit their rate (RFC 1812 section
// 4.3.2.8 asks the caller to), and does not choose addresses. The functions on a packet.Packet turn the packet in place into the
// answer to it and parse it again; the Ethernet header stays as it was, for packet.SetL2 to write. When they return false the
// frame may not be sent and is as it was.
//
// All functions are pure and allocate nothing; the packet and buffer belong to the caller.
package build
