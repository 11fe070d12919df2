// Package prefetch asks the processor for memory that is about to be looked at, so that it is on its way meanwhile.
//
// It does not wait, change anything or fail: any number may be an address, and what is not mapped, or not ours, is passed by without a fault. So nobody need check an address before. Who asks owns the list. All functions may
// be called at the same time.
package prefetch
