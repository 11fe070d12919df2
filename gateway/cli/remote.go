package cli

import (
	"errors"
	"fmt"
	"os"
	"time"

	"demarc/cluster/transport"
	"demarc/configs"
	"demarc/gateway/api"
)

// dial makes the client for the node that is meant: on this machine by its socket, or elsewhere by its address and a client's keys. What is said on the
// command line counts more than the environment; two that are said alike are a mistake, because a change must not go to the wrong node.
func (a *app) dial() (*api.Client, error) {
	socket, server := a.given("socket"), a.given("server")
	if !socket && !server {
		socket, server = os.Getenv(socketEnv) != "", a.server != ""
	}
	switch {
	case socket && server:
		return nil, usageError{errors.New("a socket and a server are named: which node is meant? Say --socket or --server, and look at " + socketEnv + " and " + serverEnv)}
	case !server:
		return api.Dial(a.socket), nil
	case a.keys == "":
		return nil, usageError{fmt.Errorf("--server %s without --keys: name the directory with ca.crt, client.crt and client.key that `demarc cluster client` has made", a.server)}
	}
	keys, err := transport.OpenClientKeys(a.keys, time.Now)
	if err != nil {
		return nil, err
	}
	c, err := api.DialTLS(a.server, keys.TLS(), keys.Why)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// socketOf is the socket of the node with this node file, unless one was named.
func (a *app) socketOf(n *configs.Node) string {
	if a.given("socket") || os.Getenv(socketEnv) != "" {
		return a.socket
	}
	return n.API.Socket
}

// elsewhere says that the node to ask is not on this machine.
func (a *app) elsewhere() bool { return a.server != "" && !a.given("socket") }
