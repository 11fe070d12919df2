package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Paths for those who look at packets. All take POST. PathExplain answers with one object, the others with a stream: a StreamLine a line, until the
// node ends it or the client goes.
const (
	PathExplain = "/v1/explain"      // ExplainRequest -> Explanation
	PathFollow  = "/v1/trace"        // TraceRequest -> StreamLines with Packet
	PathCapture = "/v1/capture"      // CaptureRequest -> StreamLines with Frame
	PathDropped = "/v1/drops/frames" // DroppedRequest -> StreamLines with Dropped
)

// Looker answers those who look at packets. emit sends a line at once; its error means that the client has gone.
type Looker interface {
	Explain(ctx context.Context, r ExplainRequest) (*Explanation, error)
	Trace(ctx context.Context, r TraceRequest, emit func(*StreamLine) error) error
	Capture(ctx context.Context, r CaptureRequest, emit func(*StreamLine) error) error
	Dropped(ctx context.Context, r DroppedRequest, emit func(*StreamLine) error) error
}

// PacketFilter says which packets are wanted: as SessionFilter, whose address and port match before or after translation, and the following. The
// limit is not looked at.
type PacketFilter struct {
	SessionFilter
	Reason string `json:"reason,omitempty"` // dropped for this reason
	Rule   string `json:"rule,omitempty"`   // of a conversation that a rule of this name decided; with Tenant
}

// ExplainRequest describes a packet: whole, or by its fields.
type ExplainRequest struct {
	Tenant    string `json:"tenant,omitempty"`    // whose interface it comes in by; where there are several, the one on whose link From lies, else the first
	Interface string `json:"interface,omitempty"` // the interface by name
	Frame     []byte `json:"frame,omitempty"`     // as it comes from the wire; then the fields below are not looked at

	Proto string `json:"proto,omitempty"` // tcp, udp, icmp, icmpv6 or a number
	From  string `json:"from,omitempty"`  // address, or address:port; of an icmp query the port is its identifier
	To    string `json:"to,omitempty"`
	Flags string `json:"flags,omitempty"` // TCP: syn, ack, fin, rst, psh, urg, with commas; empty = syn
	Seq   uint32 `json:"seq,omitempty"`   // TCP; 0 with Ack 0 and no SYN = the next one of the session, where there is one
	Ack   uint32 `json:"ack,omitempty"`
	TTL   int    `json:"ttl,omitempty"`  // 0 = 64
	Len   int    `json:"len,omitempty"`  // IP bytes; 0 = no payload
	DSCP  int    `json:"dscp,omitempty"` //
	DF    bool   `json:"df,omitempty"`
	ICMP  string `json:"icmp,omitempty"`  // type, or type/code; empty = echo request
	Quote string `json:"quote,omitempty"` // of an icmp error: proto,from,to of what it is about
	MAC   string `json:"mac,omitempty"`   // destination; empty = the interface's own
}

// Step is what one stage decided.
type Step struct {
	Stage  string `json:"stage"`
	Result string `json:"result"` // "pass", "drop", or "wait" for what the packet has to wait for
	Text   string `json:"text"`
}

// Tuple is the ends of a packet.
type Tuple struct {
	Proto string `json:"proto"`
	Src   string `json:"src"` // address, or address:port
	Dst   string `json:"dst"`
}

// Pass is the way of a packet through one worker. A packet that is handed over, or that goes round by a public address of ours, makes several.
type Pass struct {
	Worker    int    `json:"worker"`
	Tenant    string `json:"tenant,omitempty"`
	Direction string `json:"direction,omitempty"` // out, in, inside
	In        Tuple  `json:"in"`
	Out       *Tuple `json:"out,omitempty"` // as it leaves, where it does
	Length    int    `json:"length"`        // IP bytes
	Steps     []Step `json:"steps"`
	Verdict   string `json:"verdict"` // send, queue, neighbor, loop, hand, punt, drop
	Reason    string `json:"reason,omitempty"`
}

// Explanation is what would become of a packet now.
type Explanation struct {
	Interface string `json:"interface"`
	Frame     []byte `json:"frame"` // that was tried
	Passes    []Pass `json:"passes"`
	Verdict   string `json:"verdict"` // of the last pass; "drop" also where the sender is told
	Reason    string `json:"reason,omitempty"`
	Text      string `json:"text"`           // the verdict in words
	Help      string `json:"help,omitempty"` // what could be changed about it
	Answer    bool   `json:"answer"`         // what leaves is an answer of the gateway's own
	Revision  uint64 `json:"revision"`       // of the policy that it was tried under
}

// TraceRequest follows live packets.
type TraceRequest struct {
	PacketFilter
	Every   uint32  `json:"every,omitempty"`   // of the packets that match, one in so many; 0 and 1 = each
	Count   uint64  `json:"count,omitempty"`   // so many in all; 0 = no end
	Seconds float64 `json:"seconds,omitempty"` // 0 = until the client goes
}

// CaptureRequest copies live packets.
type CaptureRequest struct {
	PacketFilter
	Before  bool    `json:"before"` // as received
	After   bool    `json:"after"`  // as they leave
	Count   uint64  `json:"count,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Snap    int     `json:"snap,omitempty"` // bytes kept of each; 0 = 256
}

// DroppedRequest reads the recorder.
type DroppedRequest struct {
	PacketFilter
	Last   int  `json:"last,omitempty"` // so many of the last ones first
	Follow bool `json:"follow,omitempty"`
}

// StreamLine is a line of a stream: one of its fields.
type StreamLine struct {
	Begin   *StreamBegin  `json:"begin,omitempty"`
	Packet  *Packet       `json:"packet,omitempty"`
	Frame   *Frame        `json:"frame,omitempty"`
	Dropped *DroppedFrame `json:"dropped,omitempty"`
	End     *StreamEnd    `json:"end,omitempty"`
}

// StreamBegin says that every worker looks now.
type StreamBegin struct {
	Node       string   `json:"node"`
	Interfaces []string `json:"interfaces"` // ports by name, in the order of Frame.Port
}

// StreamEnd is the last line of a stream that the node ended.
type StreamEnd struct {
	Why     string `json:"why"`              // count, time, or what went wrong
	Failed  bool   `json:"failed,omitempty"` // it went wrong: more had come
	Matched uint64 `json:"matched"`          // packets that the filter wanted
	Sent    uint64 `json:"sent"`             // lines
	Lost    uint64 `json:"lost"`             // packets that were wanted and not read in time
}

// Packet is a live packet that was followed.
type Packet struct {
	Time time.Time `json:"time"`
	Pass
	Looped bool `json:"looped,omitempty"` // it came round by a public address of ours
	Handed bool `json:"handed,omitempty"` // from another worker
}

// Frame is a captured frame.
type Frame struct {
	Time    time.Time `json:"time"`
	Side    string    `json:"side"`           // before, after
	Port    string    `json:"port,omitempty"` // device; "" where it goes round
	Tenant  string    `json:"tenant,omitempty"`
	Verdict string    `json:"verdict"`
	Reason  string    `json:"reason,omitempty"`
	Length  int       `json:"length"`
	Data    []byte    `json:"data"`
}

// DroppedFrame is a drop that was recorded.
type DroppedFrame struct {
	Time    time.Time `json:"time"`
	Worker  int       `json:"worker"` // -1 = the slow path
	Tenant  string    `json:"tenant,omitempty"`
	Port    string    `json:"port,omitempty"` // that it came in by; "" where none is known
	VLAN    int       `json:"vlan,omitempty"`
	Reason  string    `json:"reason"`
	In      Tuple     `json:"in"`
	Out     *Tuple    `json:"out,omitempty"` // as it would have left, where it was translated already
	Length  int       `json:"length"`
	After   bool      `json:"after"`             // Data is as it would have left, else as it was received
	Skipped uint32    `json:"skipped,omitempty"` // more of the same that were dropped before it and are only counted
	Data    []byte    `json:"data"`              // the first 128 bytes
}

// Stream sends a request and calls fn with each line of the answer until the stream or ctx ends; the latter is no error.
func (c *Client) Stream(ctx context.Context, path string, req any, fn func(*StreamLine) error) error {
	res, err := c.open(ctx, path, req)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer res.Body.Close()
	in := bufio.NewReaderSize(res.Body, 64<<10)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, io.EOF) && len(line) == 0 {
				return nil
			}
			return fmt.Errorf("the node's stream ended: %w", err)
		}
		var l StreamLine
		if err := json.Unmarshal(line, &l); err != nil {
			return fmt.Errorf("the node's stream: %w", err)
		}
		if err := fn(&l); err != nil {
			return err
		}
	}
}
