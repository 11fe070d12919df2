package pipeline

import (
	"testing"

	"github.com/google/gopacket/layers"

	"demarc/gateway/verdict"
)

// Between a new view and the end of the old sessions a mapping belongs to the tenant that made it, whoever has its public address now.
func TestAMappingIsNoWayIntoTheNextTenant(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	s := r.send(2, udp4(t, 2, "198.18.30.5", 4000, "203.0.113.11", 1000))
	port := uint16(r.want(&s[0], verdict.Send).Layer(layers.LayerTypeUDP).(*layers.UDP).SrcPort)
	text := replaceOnce(t, testPolicy, `pool = ["192.0.2.48"]`, `pool = ["192.0.2.49"]`)
	text = replaceOnce(t, text, `pool = ["192.0.2.32"]`, "pool = [\"192.0.2.48\"]\nfiltering = \"endpoint-independent\"")
	text = replaceOnce(t, text, "name = \"beta\"\ninterfaces = [\"beta\"]\nprefixes = [\"198.18.10.0/24\"]", "name = \"beta\"\ninterfaces = [\"beta\"]\nprefixes = [\"198.18.10.0/24\", \"198.18.30.0/24\"]")
	r.sh.SetView(compileView(t, r.node, r.space, r.view, text))
	s = r.send(0, udp4(t, 0, "203.0.113.77", 9999, "192.0.2.48", port))
	r.wantDrop(&s[0], verdict.NATUnusedAddress)
	s = r.send(0, udp4(t, 0, "203.0.113.11", 1000, "192.0.2.48", port))
	r.wantDrop(&s[0], verdict.SessionCut)
}

// An inside prefix without a route inside: its answers have nowhere to go, least of all back out by the backbone's default route.
func TestInsideAddressesDoNotLeaveByTheDefaultRoute(t *testing.T) {
	wider := replaceOnce(t, testPolicy, `prefixes = ["198.18.10.0/24", "2001:db8:a::/64"]`, `prefixes = ["198.18.10.0/23", "2001:db8:a::/64"]`)
	r := newRig(t, testNode, wider)
	s := r.send(1, udp4(t, 1, "198.18.11.5", 4000, "203.0.113.11", 1000))
	port := uint16(r.want(&s[0], verdict.Send).Layer(layers.LayerTypeUDP).(*layers.UDP).SrcPort)
	answer := udp4(t, 0, "203.0.113.11", 1000, "192.0.2.16", port)
	s = r.send(0, answer)
	r.wantDrop(&s[0], verdict.NoRoute)
	// Nor after the session was judged again.
	r.sh.SetView(compileView(t, r.node, r.space, r.view, wider))
	s = r.send(0, answer)
	r.wantDrop(&s[0], verdict.NoRoute)
}

func TestTheGatewaysOwnAddressIsNoHost(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	s := r.send(1, udp4(t, 1, "198.18.10.1", 4000, "203.0.113.11", 1000))
	r.wantDrop(&s[0], verdict.SpoofedSource)
}
