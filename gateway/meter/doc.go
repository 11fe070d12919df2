// Package meter counts what passed and what was dropped, per tenant and direction, one shard a worker.
//
// It does not sample, estimate or reset. A shard has one writer (its worker): Add and Drop touch plain memory, Publish copies what
// changed to words that any goroutine may read. So a reader sees each counter whole, at most one burst old.
package meter
