package gateway

// writeLease writes nothing, so no group is served by this build: it goes when the deadlines of workers and XDP programs are wired.
func (g *Gateway) writeLease(_ uint8, _, _ uint64, done func()) {
	if done != nil {
		done()
	}
}
