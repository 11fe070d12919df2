// Package peers writes what the bench's peer, the kernel with nftables, is configured with, and reads back whether it really is.
//
// It does not run anything: the caller hands its text to nft and gives it nft's output. The same rule list becomes a policy of ours and
// rulesets of the kernel's. All functions are pure.
package peers
