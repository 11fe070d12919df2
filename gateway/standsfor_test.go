package gateway

import "testing"

// TestStandsForTheText: sessions are taken as judged by what was judged under the same text, not the same number.
func TestStandsForTheText(t *testing.T) {
	if a, b := standsFor([]byte("a")), standsFor([]byte("b")); a == b || a == 0 || a != standsFor([]byte("a")) {
		t.Errorf("%x and %x", a, b)
	}
}
