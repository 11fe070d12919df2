// Package host is the hosts of a lab: small clients and servers (HTTP, ping, UDP, DNS, TCP) that measure from their own side what a network did
// with their packets, and print it as one JSON object.
//
// It does not know about gateways, and of namespaces only what flows is told, whose hosts are one process: all else speaks to the network that its process finds itself in.
// Sockets are ordinary ones.
// Main runs one tool to its end in one process; nothing here is shared between tools. A server prints {"ready":"ADDRESS"} once it
// listens and its result when its standard input ends or it gets SIGTERM, so it cannot outlive whoever started it.
package host
