package beat

// window says which sequence numbers have come already (RFC 4303, 3.4.3), in whole words as RFC 6479 has it: one word more than it spans, so that it
// moves by clearing words and never by shifting bits.
type window struct {
	top  uint64 // the highest that has come
	bits [words]uint64
}

const (
	words = 33
	span  = (words - 1) * 64 // numbers that many below the highest are still told apart; older ones are refused
)

// fresh says whether n may be taken: it is new, or late and has not come yet.
func (w *window) fresh(n uint64) bool {
	switch {
	case n == 0 || n+span <= w.top:
		return false
	case n > w.top:
		return true
	}
	return w.bits[n/64%words]>>(n%64)&1 == 0
}

// take notes that n has come. Only for what is fresh, and was opened: else a forger would move the window.
func (w *window) take(n uint64) {
	if n > w.top {
		from, to := w.top/64+1, n/64
		if to-from >= words { // further than it spans, also when to is below from and nothing is to be cleared
			from = max(from, to-min(to, words-1))
		}
		for i := from; i <= to; i++ {
			w.bits[i%words] = 0
		}
		w.top = n
	}
	w.bits[n/64%words] |= 1 << (n % 64)
}
