package guard

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"demarc/cluster/beat"
)

// What a data plane tells its parent over their socket: a byte that says what it is, four bytes length (little-endian), and so many bytes. Both are the same program.
const (
	sayNotify    = 'n' // for systemd, as sd_notify(3) has it
	sayDeadlines = 'd' // the table of deadlines: its descriptor comes along
	sayWords     = 'w' // will, as JSON: all that is to be said. What was told before is forgotten

	headLen = 5
	maxSay  = 4 << 20 // 255 groups, seven other members, eight paths each
)

// Words are a release of one term of this node's, sealed for each other member on each path. They are true once this process has ended, and not before.
type Words struct {
	Group   string        `json:"group"`
	Epoch   uint64        `json:"epoch"`
	Parcels []beat.Parcel `json:"parcels"`
}

func appendSay(b []byte, what byte, text []byte) []byte {
	b = append(b, what)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

// readHead reads what comes next, and how long it is.
func readHead(b [headLen]byte) (what byte, n int, err error) {
	n = int(binary.LittleEndian.Uint32(b[1:]))
	switch {
	case b[0] != sayNotify && b[0] != sayDeadlines && b[0] != sayWords:
		return 0, 0, fmt.Errorf("the data plane says %q, which is nothing", b[0])
	case n > maxSay:
		return 0, 0, fmt.Errorf("the data plane says %d bytes at once, at most %d", n, maxSay)
	}
	return b[0], n, nil
}

// will is what is to be said, and when: Wait = not before all sockets of the data plane are closed, since a driver may send by itself what stands in their rings. Grace = not before XDP programs that carry
// sessions have ended what they had begun.
type will struct {
	Words []Words `json:"words"`
	Wait  bool    `json:"wait"`
	Grace bool    `json:"grace"`
}

func readWill(text []byte) (w will, err error) {
	return w, json.Unmarshal(text, &w)
}
