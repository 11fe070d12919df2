// Package slowpath resolves neighbours for the gateway: it answers and asks ARP (RFC 826) and IPv6 neighbour
// discovery (RFC 4861), holds the few packets that wait for an answer, and writes the table that workers read.
//
// It does not route, filter or translate, it never opens a socket, and it is not told about frames that belong to the
// host's own stack. What it sends leaves through the function that it is given; where the kernel resolves for an
// address that host and gateway share, it asks the kernel through another and is told the answer by Learned.
//
// What belongs to a group is answered for and announced only while this node serves that group; who does is asked of Config.May.
//
// Workers call Input, each with its own number, and are never blocked: each has its own rings of fixed size. Run is one
// goroutine that empties them. SetInterfaces, Learned, Neighbors and Stats may be called by any goroutine; they share one
// lock with Run, which no worker ever takes. Announce takes no lock. All memory for frames and entries is taken by New. The decisions are a
// state machine that is handed the time (machine.go); Run is only the loop around it.
package slowpath
