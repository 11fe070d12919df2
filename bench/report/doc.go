// Package report turns the bench's runs into figures: medians with their spread, ratios, one JSON object, one table.
//
// It does not measure. Ratios are those of medians; whether they may be shown at all is the caller's decision. All functions are pure.
package report
