package nat

// Blocks are closed where a standby must know of each in which there may be mappings (replica.Blocks). No new mapping is made in one, and nobody claims it; mappings
// that it has live on and serve new sessions of their inside ports. While nothing is closed it costs a new mapping one load.

const (
	// NumClasses is how many port spaces an address has, and BlockWords how many words of 64 blocks each of them.
	NumClasses = int(numClasses)
	BlockWords = blocksPerAddr / 64

	// LowBlocks is those blocks of the first word that are of ports below 1024: only inside ports below 1024 get any of those.
	LowBlocks uint64 = lowBlockMask
)

func (st *addrState) isClosed(c Class, n blockNo) bool {
	return st.closed[c][n/64].Load()>>(n&63)&1 != 0
}

// Look says of 64 blocks of an address which are nobody's and have ports to give, and which somebody has: it may be that neither holds. Any goroutine.
func (sp *Space) Look(id AddrID, c Class, word int) (free, used uint64) {
	st := sp.state(id)
	if st == nil || c >= numClasses || uint(word) >= BlockWords {
		return 0, 0
	}
	nobody := st.free[c][word].Load()
	return nobody &^ (st.barred[c][0][word].Load() & st.barred[c][1][word].Load()), ^nobody
}

// Close says which of 64 blocks are closed from now on. A worker that had found one of them open and nobody's a moment ago gives it up, or Look says from now on that
// somebody has it. A mapping in a block that somebody has already may come a moment later. Control only.
func (sp *Space) Close(id AddrID, c Class, word int, closed uint64) {
	st := sp.state(id)
	if st == nil || c >= numClasses || uint(word) >= BlockWords {
		return
	}
	opened := st.closed[c][word].Swap(closed) &^ closed
	if opened == 0 {
		return
	}
	opened &^= st.some[c][0][word].Load() & st.some[c][1][word].Load() // the others are known to who searches: whoever takes that back looks behind it whether they are open
	for n := blockNo(word * 64); opened != 0; n, opened = n+1, opened>>1 {
		if opened&1 != 0 {
			st.offer(c, n, st.blocks[c][n].free.Load()&^st.reserved[c][n].Load())
		}
	}
	st.moves[c].Add(1 << 32)
	sp.resGen.Add(1) // lists are made true where nothing else is found, as after ports were reserved
}

// Closed is which of 64 blocks are closed. Any goroutine.
func (sp *Space) Closed(id AddrID, c Class, word int) uint64 {
	st := sp.state(id)
	if st == nil || c >= numClasses || uint(word) >= BlockWords {
		return 0
	}
	return st.closed[c][word].Load()
}
