// Package e2e is the tests of the whole: the real binary in namespaces, real clients and the real kernel around it.
//
// It does not contain anything but tests, and does not look inside the gateway: what is judged is what hosts see, what is on the wire, and
// what the gateway says of itself. The tests need root (netlab/roottest) and run one after the other, but for those that mostly wait.
//
// With DEMARC_E2E_OFFLOAD=always the gateways of the standard lab and of the pair carry established sessions in their XDP programs. Two kinds of tests do not pass then: those that plug in a device of their own
// whose far end takes no redirected frames, and those that want no packet out of order from several workers.
package e2e
