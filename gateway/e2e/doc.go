// Package e2e is the tests of the whole: the real binary in namespaces, real clients and the real kernel around it.
//
// It does not contain anything but tests, and does not look inside the gateway: what is judged is what hosts see, what is on the wire, and
// what the gateway says of itself. The tests need root (netlab/roottest) and run one after the other, but for those that mostly wait.
//
// With DEMARC_E2E_OFFLOAD=always (make test-always) the gateways of the standard lab and of the pair carry established sessions in their XDP programs, but for ports in generic mode, which has no such
// program. Without it their node files say never, but for the test of auto. The tests that have Offload in their name always run so.
//
// What never runs so: tests with a stage that is broken on purpose (Poison), which programs know nothing of, and runs of the wire tests whose programs are told what to do.
package e2e
