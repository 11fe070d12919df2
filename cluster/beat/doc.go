// Package beat carries failover messages between members as sealed datagrams, over every path there is.
//
// It does not know what a group is, who owns one, or who should be a member: whom to let in it asks. Keys come from connections of
// transport, in which both sides have shown their certificates, and outlive them; a certificate that ends ends no keys.
//
// A Carrier may be used by any goroutine. It has one goroutine for each socket, which hands over what comes in, and one that looks after keys.
package beat
