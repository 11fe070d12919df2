package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// clock is a wall clock that a test sets.
type clock struct{ ns atomic.Int64 }

func at(t time.Time) *clock {
	c := &clock{}
	c.ns.Store(t.UnixNano())
	return c
}

func (c *clock) now() time.Time { return time.Unix(0, c.ns.Load()) }

func authority(t testing.TB) *Authority {
	t.Helper()
	a, err := NewAuthority(filepath.Join(t.TempDir(), "ca"), "cluster", noon)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func keys(t testing.TB, a *Authority, name string, now func() time.Time) *Keyring {
	t.Helper()
	dir := t.TempDir()
	if err := a.Issue(dir, name, noon); err != nil {
		t.Fatal(err)
	}
	k, err := OpenKeyring(dir, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func listen(t testing.TB, c Config) *Transport {
	t.Helper()
	c.Address = "127.0.0.1:0"
	tr, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

// echo answers requests with what they say.
func echo(t testing.TB, tr *Transport) {
	go func() {
		for {
			c, err := tr.Requests().Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// ask sends a line and reads it back.
func ask(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "hello" {
		return fmt.Errorf("answer %q", b)
	}
	return nil
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain: ", what)
		}
	}
}

func TestMembersTalk(t *testing.T) {
	a, c := authority(t), at(noon)
	server := listen(t, Config{Keys: keys(t, a, "gw1", c.now)})
	echo(t, server)
	client := listen(t, Config{Keys: keys(t, a, "gw2", c.now)})
	conn, err := client.Dial(t.Context(), server.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := ask(conn); err != nil {
		t.Fatal(err)
	}
	// A connection that stands outlives its certificates; a new one does not come about.
	c.ns.Store(noon.Add(MemberLife + time.Hour).UnixNano())
	if err := ask(conn); err != nil {
		t.Errorf("after the expiry: %v", err)
	}
	if _, err := client.Dial(t.Context(), server.Address()); err == nil || !strings.Contains(err.Error(), "the certificate of gw1 was valid until") {
		t.Errorf("a new connection after the expiry: %v", err)
	}
}

// TestRefused: who is not let in is counted under its kind, learns nothing, and the log names why.
func TestRefused(t *testing.T) {
	a, c := authority(t), at(noon)
	only := func(p Peer) error {
		if p.Name == "gone" {
			return Refuse(RefusedNotMember, "%s is not a member", p.Name)
		}
		return nil
	}
	server := listen(t, Config{Keys: keys(t, a, "gw1", c.now), Allowed: only})
	echo(t, server)
	hasty := listen(t, Config{Keys: keys(t, a, "gw1", c.now), Timeout: 300 * time.Millisecond}) // for who says nothing: others may take longer while the machine is elsewhere
	// dial as a client whose own checks are off.
	dial := func(k *Keyring, protocol string) error {
		cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS13}
		if k != nil {
			cert, _ := k.current()
			cfg.Certificates = []tls.Certificate{*cert}
		}
		conn, err := tls.Dial("tcp", server.Address(), cfg)
		if err != nil {
			return err
		}
		defer conn.Close()
		return ask(conn)
	}
	raw := func(to *Transport, send string) error {
		conn, err := net.Dial("tcp", to.Address())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, _ = conn.Write([]byte(send))
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, _ := io.ReadAll(conn); bytes.Contains(b, []byte("hello")) {
			return nil
		}
		return errors.New("nothing came back")
	}
	dir := t.TempDir()
	if err := a.Issue(dir, "late", noon.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	future, err := OpenKeyring(dir, c.now, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		name string
		by   *Transport
		kind Refusal
		try  func() error
	}{
		{"no certificate", server, RefusedNoCertificate, func() error { return dial(nil, protoRequest) }},
		{"another authority", server, RefusedAuthority, func() error { return dial(keys(t, authority(t), "gw2", c.now), protoRequest) }},
		{"not valid yet", server, RefusedClock, func() error { return dial(future, protoRequest) }},
		{"not a member", server, RefusedNotMember, func() error { return dial(keys(t, a, "gone", c.now), protoRequest) }},
		{"another protocol", server, RefusedHandshake, func() error { return dial(keys(t, a, "gw2", c.now), "http/1.1") }},
		{"garbage", server, RefusedHandshake, func() error { return raw(server, strings.Repeat("garbage", 1000)) }},
		{"half open", hasty, RefusedHandshake, func() error { return raw(hasty, "") }},
	} {
		before := r.by.Refused()[r.kind]
		if err := r.try(); err == nil {
			t.Errorf("%s: was let in", r.name)
		}
		eventually(t, r.name+" is counted as "+string(r.kind), func() bool { return r.by.Refused()[r.kind] == before+1 })
	}
	if err := dial(keys(t, a, "gw2", c.now), protoRequest); err != nil {
		t.Errorf("a member after all of them: %v", err)
	}
}

// TestAClockIsNamedOnBothSides: a member whose clock says 1970 names that, and so do those that it refuses: the alert tells them.
func TestAClockIsNamedOnBothSides(t *testing.T) {
	a, c, epoch := authority(t), at(noon), at(time.Unix(0, 0))
	old := listen(t, Config{Keys: keys(t, a, "old", epoch.now)})
	echo(t, old)
	good := listen(t, Config{Keys: keys(t, a, "gw1", c.now)})
	conn, err := good.Dial(t.Context(), old.Address())
	if err != nil {
		t.Fatal(err) // TLS 1.3: the other side judges after that
	}
	defer conn.Close()
	err = good.Named(ask(conn))
	if KindOf(err) != RefusedClock || !strings.Contains(err.Error(), "it finds that the certificate of gw1") || !strings.Contains(err.Error(), "one of the two clocks is off") {
		t.Errorf("%v", err)
	}
	eventually(t, "it is counted there", func() bool { return old.Refused()[RefusedClock] == 1 })
	if _, err := good.dial(t.Context(), old.Address(), protoRaft); KindOf(err) != RefusedClock {
		t.Errorf("for Raft: %v", err)
	}
	if _, err := old.Dial(t.Context(), good.Address()); KindOf(err) != RefusedClock || !strings.Contains(err.Error(), "here it is 1970-01-01") {
		t.Errorf("the other way: %v", err)
	}
	if _, early := old.cfg.Keys.Early(); !early {
		t.Error("it does not know that its clock is off")
	}
	if _, early := good.cfg.Keys.Early(); early {
		t.Error("the right clock is called wrong")
	}
}

// TestOneAddressHoldsItsShare: half-open connections from one address leave room for others.
func TestOneAddressHoldsItsShare(t *testing.T) {
	a, c := authority(t), at(noon)
	server := listen(t, Config{Keys: keys(t, a, "gw1", c.now), Handshake: 8, PerSource: 3})
	echo(t, server)
	for range 12 {
		conn, err := net.Dial("tcp", server.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	eventually(t, "nine of twelve are refused", func() bool { return server.Refused()[RefusedBusy] == 9 })
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protoRequest}, MinVersion: tls.VersionTLS13}
	cert, _ := keys(t, a, "gw2", c.now).current()
	cfg.Certificates = []tls.Certificate{*cert}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	raw, err := d.Dial("tcp", server.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := ask(tls.Client(raw, cfg)); err != nil {
		t.Errorf("a member from another address: %v", err)
	}
}

// TestHalfOpenAreBounded: connections that say nothing hold only so many places, and for so long.
func TestHalfOpenAreBounded(t *testing.T) {
	a, c := authority(t), at(noon)
	server := listen(t, Config{Keys: keys(t, a, "gw1", c.now), Handshake: 4, Timeout: 400 * time.Millisecond})
	echo(t, server)
	var open []net.Conn
	for range 12 {
		conn, err := net.Dial("tcp", server.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	eventually(t, "those beyond four are refused", func() bool { return server.Refused()[RefusedBusy] == uint64(len(open)-4) })
	client := listen(t, Config{Keys: keys(t, a, "gw2", c.now)})
	eventually(t, "a member gets in when the silent ones have been given up", func() bool {
		conn, err := client.Dial(t.Context(), server.Address())
		if err != nil {
			return false
		}
		defer conn.Close()
		return ask(conn) == nil
	})
}

func TestKeysAreReadAgain(t *testing.T) {
	a, c := authority(t), at(noon)
	dir := t.TempDir()
	if err := a.Issue(dir, "gw1", noon); err != nil {
		t.Fatal(err)
	}
	k, err := OpenKeyring(dir, c.now, nil)
	if err != nil {
		t.Fatal(err)
	}
	if end, renew := k.Expiry(); renew || end.Sub(noon) != MemberLife {
		t.Errorf("a new certificate: ends %s, renew %v", end, renew)
	}
	c.ns.Store(noon.Add(MemberLife*2/3 + time.Hour).UnixNano())
	if _, renew := k.Expiry(); !renew {
		t.Error("not to be renewed after two thirds of its life")
	}
	first, _ := k.current()
	if err := a.Issue(dir, "gw1", c.now()); err != nil {
		t.Fatal(err)
	}
	again := func() { k.mu.Lock(); k.looked = time.Time{}; k.mu.Unlock() }
	again()
	second, _ := k.current()
	if bytes.Equal(first.Certificate[0], second.Certificate[0]) {
		t.Error("the new certificate was not read")
	}
	// What is wrong on disk changes nothing: another member's certificate, half a file.
	if err := a.Issue(dir, "gw2", c.now()); err != nil {
		t.Fatal(err)
	}
	again()
	if third, _ := k.current(); !bytes.Equal(third.Certificate[0], second.Certificate[0]) || !strings.Contains(k.said, "is of gw2, and this node is gw1") {
		t.Errorf("a member took another's name: %q", k.said)
	}
	if err := os.WriteFile(filepath.Join(dir, MemberCert), []byte("half a fi"), 0o644); err != nil {
		t.Fatal(err)
	}
	again()
	if third, _ := k.current(); !bytes.Equal(third.Certificate[0], second.Certificate[0]) {
		t.Error("a damaged file took the certificate away")
	}
	if !strings.Contains(k.said, MemberCert) {
		t.Errorf("says %q", k.said)
	}
}

// A loss of power between the new certificate and its key leaves a node that starts: the key stands beside, and is put in its place. One that belongs to neither is left alone.
func TestKeyThatWaitsForItsCertificate(t *testing.T) {
	a, dir, next := authority(t), t.TempDir(), t.TempDir()
	for _, d := range []string{dir, next} {
		if err := a.Issue(d, "gw1", time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(next, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	move(MemberKey, pendingKey)
	old, err := OpenKeyring(dir, time.Now, nil)
	if err != nil {
		t.Fatalf("the key alone is there: %v", err)
	}
	was := old.Key() // it reads the files again when they change
	move(MemberCert, MemberCert)
	k, err := OpenKeyring(dir, time.Now, nil)
	if err != nil {
		t.Fatalf("and its certificate: %v", err)
	}
	if k.Key() == was {
		t.Error("it is the old certificate still")
	}
	if _, err := os.Stat(filepath.Join(dir, pendingKey)); !os.IsNotExist(err) {
		t.Errorf("the key is not in its place: %v", err)
	}
	if again, err := OpenKeyring(dir, time.Now, nil); err != nil || again.Key() != k.Key() {
		t.Errorf("once more: %v", err)
	}
}

func TestBadKeys(t *testing.T) {
	a, other := authority(t), authority(t)
	for name, c := range map[string]struct {
		do   func(dir string) error
		says string
	}{
		"nothing there":  {func(dir string) error { return os.Remove(filepath.Join(dir, MemberCert)) }, MemberCert},
		"open to others": {func(dir string) error { return os.Chmod(filepath.Join(dir, MemberKey), 0o640) }, "chmod 600"},
		"another key":    {func(dir string) error { return writeKey(filepath.Join(dir, MemberKey), other.key) }, "do not belong together"},
		"another authority": {func(dir string) error {
			return writePEM(filepath.Join(dir, AuthorityCert), "CERTIFICATE", other.cert.Raw, 0o644)
		}, "is not signed by the authority"},
		"the authority's": {func(dir string) error {
			return writePEM(filepath.Join(dir, MemberCert), "CERTIFICATE", a.cert.Raw, 0o644)
		}, "do not belong together"},
		"no PEM": {func(dir string) error { return os.WriteFile(filepath.Join(dir, AuthorityCert), []byte("x"), 0o644) }, "PEM block"},
	} {
		dir := t.TempDir()
		if err := a.Issue(dir, "gw1", noon); err != nil {
			t.Fatal(err)
		}
		if err := c.do(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeyring(dir, time.Now, nil); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := NewAuthority(dir, "x", noon); err != nil {
		t.Fatal(err)
	}
	if _, err := NewAuthority(dir, "x", noon); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second authority in one directory: %v", err)
	}
	if st, err := os.Stat(filepath.Join(dir, AuthorityKey)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

// TestRaftGoesThrough: a message of Raft over the port, beside requests.
func TestRaftGoesThrough(t *testing.T) {
	a, c := authority(t), at(noon)
	s, d := listen(t, Config{Keys: keys(t, a, "gw1", c.now)}), listen(t, Config{Keys: keys(t, a, "gw2", c.now)})
	st, dt := s.Raft().(*raft.NetworkTransport), d.Raft().(*raft.NetworkTransport)
	defer st.Close()
	defer dt.Close()
	echo(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for {
			select {
			case rpc := <-st.Consumer():
				rpc.Respond(&raft.RequestVoteResponse{Term: 7, Granted: true}, nil)
			case <-ctx.Done():
				return
			}
		}
	}()
	var resp raft.RequestVoteResponse
	if err := dt.RequestVote("gw1", raft.ServerAddress(s.Address()), &raft.RequestVoteRequest{Term: 7}, &resp); err != nil || !resp.Granted || resp.Term != 7 {
		t.Fatalf("%+v, %v", resp, err)
	}
	conn, err := d.Dial(ctx, s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := ask(conn); err != nil {
		t.Error(err)
	}
}

// TestMessagesUnderWay: as many messages of Raft as were asked for may wait for their answer, where it takes long to come.
func TestMessagesUnderWay(t *testing.T) {
	a, c := authority(t), at(noon)
	s, d := listen(t, Config{Keys: keys(t, a, "gw1", c.now)}), listen(t, Config{Keys: keys(t, a, "gw2", c.now), InFlight: 8})
	st, dt := s.Raft().(*raft.NetworkTransport), d.Raft().(*raft.NetworkTransport)
	defer st.Close()
	defer dt.Close()
	p, err := dt.AppendEntriesPipeline("gw1", raft.ServerAddress(s.Address()))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	sent := make(chan error, 8)
	go func() {
		for range 6 { // nobody answers
			_, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, new(raft.AppendEntriesResponse))
			sent <- err
		}
	}()
	for i := range 6 {
		select {
		case err := <-sent:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(3 * time.Second):
			t.Fatalf("message %d waits for the answers to those before", i+1)
		}
	}
}

// Who hangs up waits for nobody: not for one that takes no connection up, for one that does not answer a message of Raft, nor for one that begins a handshake and says nothing.
func TestHangUpEndsWhatIsUnderWay(t *testing.T) {
	a, c := authority(t), at(noon)
	s, d := listen(t, Config{Keys: keys(t, a, "gw1", c.now)}), listen(t, Config{Keys: keys(t, a, "gw2", c.now)})
	dt := d.Raft().(*raft.NetworkTransport)
	defer dt.Close()
	st := s.Raft().(*raft.NetworkTransport) // takes messages, and nobody answers them
	defer st.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	half, err := net.Dial("tcp", d.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	under := map[string]func() error{
		"a dial": func() error { _, err := d.Dial(t.Context(), silent.Addr().String()); return err },
		"a dial of Raft": func() error {
			return dt.RequestVote("gw3", raft.ServerAddress(silent.Addr().String()), &raft.RequestVoteRequest{Term: 7}, new(raft.RequestVoteResponse))
		},
		"a message of Raft": func() error {
			return dt.RequestVote("gw1", raft.ServerAddress(s.Address()), &raft.RequestVoteRequest{Term: 7}, new(raft.RequestVoteResponse))
		},
	}
	type end struct {
		what string
		err  error
	}
	ended := make(chan end, len(under))
	for what, fn := range under {
		go func() { ended <- end{what, fn()} }()
	}
	select {
	case <-st.Consumer(): // it is under way
	case <-time.After(3 * time.Second):
		t.Fatal("the message did not come")
	}
	eventually(t, "a handshake under way", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.shaking) == 1 })
	began := time.Now()
	d.HangUp()
	for range under {
		if e := <-ended; e.err == nil {
			t.Errorf("%s was answered", e.what)
		} else if took := time.Since(began); took > time.Second {
			t.Errorf("%s ended %s later: %v", e.what, took, e.err)
		}
	}
	if err := dt.RequestVote("gw1", raft.ServerAddress(s.Address()), &raft.RequestVoteRequest{Term: 8}, new(raft.RequestVoteResponse)); err == nil {
		t.Error("a message went out behind it")
	}
	if err := d.Close(); err != nil || time.Since(began) > 2*time.Second {
		t.Errorf("closed after %s: %v", time.Since(began), err)
	}
}
