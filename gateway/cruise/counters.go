package cruise

import (
	"fmt"

	"demarc/gateway/cruise/bpf"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
)

// What is what the program made of a frame, in the order of enum what in bpf/cruise.c.
type What uint8

// Carried, dropped, or why a frame went up to user space.
const (
	Carried What = iota
	DropNotOwner
	DropDead
	DropBroken
	UpFrame
	UpChecksum
	UpOptions
	UpFragment
	UpProtocol
	UpFlags
	UpInterface
	UpMAC
	UpAddress
	UpSession
	UpNotDown
	UpWatched
	UpJudged
	UpTenant
	UpState
	UpWindow
	UpHop
	UpTTL
	UpSize
	UpPort
	UpQueue
	UpRate
	UpRoom
	NumWhats
)

var whatText = [NumWhats]string{"carried", "drop_not_owner", "drop_dead", "drop_broken", "up_frame", "up_checksum", "up_options", "up_fragment", "up_protocol", "up_flags", "up_interface",
	"up_mac", "up_address", "up_session", "up_not_down", "up_watched", "up_judged", "up_tenant", "up_state", "up_window", "up_hop", "up_ttl", "up_size", "up_port", "up_queue",
	"up_rate", "up_room"}

// String is its lower-case name.
func (w What) String() string {
	if w < NumWhats {
		return whatText[w]
	}
	return "invalid"
}

// Count is how many frames a port's program has made that of, and when the last one was (ns of CLOCK_BOOTTIME, 0 = never).
func (p *Program) Count(w What) (n, last uint64, err error) {
	var per []counter
	if err := p.counters.Lookup(uint32(w), &per); err != nil {
		return 0, 0, fmt.Errorf("read counter %s: %w", w, err)
	}
	for _, c := range per {
		n += c.N
		last = max(last, c.At)
	}
	return n, last, nil
}

// Volume is what was carried of a tenant in a direction.
func (t *Tables) Volume(id flow.TenantID, d meter.Dir) (meter.Volume, error) {
	return t.sum(bpf.CruiseMapVolumes, uint32(id)*figures+uint32(d))
}

// Voice is what of that, Out or In, is voice: within its own rate, and above. What the tenant's rate has no room for goes up.
func (t *Tables) Voice(id flow.TenantID, d meter.Dir) (v meter.Voice, err error) {
	at := uint32(id)*figures + dirs + uint32(d)
	if v[meter.VoiceWithin], err = t.sum(bpf.CruiseMapVolumes, at); err == nil {
		v[meter.VoiceAbove], err = t.sum(bpf.CruiseMapVolumes, at+2)
	}
	return v, err
}

// Sent is what was sent by a port; bytes are those of frames.
func (t *Tables) Sent(port uint16) (meter.Volume, error) {
	return t.sum(bpf.CruiseMapSent, uint32(port))
}

func (t *Tables) sum(name string, at uint32) (sum meter.Volume, err error) {
	var per []volume
	if err := t.maps[name].Lookup(at, &per); err != nil {
		return sum, fmt.Errorf("read %s %d: %w", name, at, err)
	}
	for _, v := range per {
		sum.Packets += v.Packets
		sum.Bytes += v.Bytes
	}
	return sum, nil
}
