package transport

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Refusal sorts the peers that were not let in.
type Refusal string

// The kinds of refusal, as they are counted.
const (
	RefusedNoCertificate Refusal = "no_certificate"
	RefusedAuthority     Refusal = "other_authority"
	RefusedClock         Refusal = "clock" // the certificate is not valid at our time: one of the two clocks is off
	RefusedNotMember     Refusal = "not_a_member"
	RefusedHandshake     Refusal = "handshake" // not TLS, too slow, another protocol
	RefusedBusy          Refusal = "busy"      // too many at a time
	RefusedRemoved       Refusal = "removed"   // was a member
	RefusedCluster       Refusal = "other_cluster"
	RefusedRequest       Refusal = "bad_request" // a member's, that makes no sense, is too large or does not come to its end
)

// Refusals lists all kinds.
var Refusals = []Refusal{RefusedNoCertificate, RefusedAuthority, RefusedClock, RefusedNotMember, RefusedHandshake, RefusedBusy, RefusedRemoved, RefusedCluster,
	RefusedRequest}

// Peer is the other side of a connection, by the certificate that it has shown.
type Peer struct {
	Name   string `json:"name"`
	Key    string `json:"key"` // SHA-256 of the certificate's public key, 64 hex digits
	Raft   bool   `json:"-"`   // the connection is for Raft; else for requests
	Dialed bool   `json:"-"`   // this side has dialled
}

// PeerOf says who is at the other end; the zero Peer where the connection is not one of a Transport.
func PeerOf(c net.Conn) Peer {
	t, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return Peer{}
	}
	return peer(t.ConnectionState())
}

func peer(s tls.ConnectionState) Peer {
	if len(s.PeerCertificates) == 0 {
		return Peer{}
	}
	return Peer{Name: memberOf(s.PeerCertificates[0]), Key: keyOf(s.PeerCertificates[0]), Raft: s.NegotiatedProtocol == protoRaft}
}

func keyOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// refused is an error with the kind that it counts as.
type refused struct {
	kind Refusal
	err  error
}

func (r *refused) Error() string { return r.err.Error() }
func (r *refused) Unwrap() error { return r.err }

func refuse(kind Refusal, format string, args ...any) error {
	return &refused{kind, fmt.Errorf(format, args...)}
}

// Refuse is an error for Config.Allowed and Config.Greet that says as what a refusal counts.
func Refuse(kind Refusal, format string, args ...any) error { return refuse(kind, format, args...) }

// KindOf is as what an error counts.
func KindOf(err error) Refusal {
	if r := (*refused)(nil); errors.As(err, &r) {
		return r.kind
	}
	return RefusedHandshake
}

// Keyring is a member's certificate and its authority, as the files in a directory say. It reads them again when they change.
type Keyring struct {
	dir string
	now func() time.Time // wall time: certificates are about nothing else
	log *slog.Logger

	mu     sync.Mutex
	looked time.Time // mu: when the files were last looked at
	stamp  string    // mu: what they looked like
	cert   *tls.Certificate
	roots  *x509.CertPool
	issuer []byte // subject key of the authority
	said   string // mu: the last problem that was logged
}

const lookAgain = time.Second

// OpenKeyring reads a directory of keys. The error names the file that is wrong.
func OpenKeyring(dir string, now func() time.Time, log *slog.Logger) (*Keyring, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	k := &Keyring{dir: dir, now: now, log: log}
	stamp, err := k.fingerprint()
	if err != nil {
		return nil, err
	}
	return k, k.load(stamp, true)
}

// CheckKeyring says what OpenKeyring would, and changes nothing in the directory.
func CheckKeyring(dir string) error {
	k := &Keyring{dir: dir}
	stamp, err := k.fingerprint()
	if err != nil {
		return err
	}
	return k.load(stamp, false)
}

// fingerprint changes when one of the files does, or who may read it: a start would refuse a key that has become another's too. Of the directory only the latter matters.
func (k *Keyring) fingerprint() (string, error) {
	var b bytes.Buffer
	for _, f := range []string{AuthorityCert, MemberCert, MemberKey, ""} {
		st, err := os.Stat(filepath.Join(k.dir, f))
		if err != nil {
			return "", err
		}
		if f != "" {
			fmt.Fprintf(&b, "%d %d ", st.ModTime().UnixNano(), st.Size())
		}
		fmt.Fprintf(&b, "%s", st.Mode())
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			fmt.Fprintf(&b, " %d", sys.Uid)
		}
		b.WriteByte(';')
	}
	return b.String(), nil
}

// load reads the files, and puts a key that waits for its certificate in its place, if it is to. What it had stays when they are not right.
func (k *Keyring) load(stamp string, put bool) error {
	ca, err := readCert(filepath.Join(k.dir, AuthorityCert))
	if err != nil {
		return err
	}
	cert, err := readCert(filepath.Join(k.dir, MemberCert))
	if err != nil {
		return err
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return fmt.Errorf("%s: has no Ed25519 key: make one with `demarc cluster cert`", filepath.Join(k.dir, MemberCert))
	}
	key, err := memberKey(k.dir, pub, put)
	if err != nil {
		return err
	}
	if memberOf(cert) == "" {
		return fmt.Errorf("%s: is not a member's certificate: make one with `demarc cluster cert`", filepath.Join(k.dir, MemberCert))
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return fmt.Errorf("%s: is not signed by the authority in %s: %w", filepath.Join(k.dir, MemberCert), AuthorityCert, err)
	}
	if k.cert != nil {
		if was, now := memberOf(k.cert.Leaf), memberOf(cert); was != now {
			return fmt.Errorf("%s: is of %s, and this node is %s: a member keeps its name", filepath.Join(k.dir, MemberCert), now, was)
		}
		if !bytes.Equal(k.issuer, ca.SubjectKeyId) {
			k.log.Warn("the authority has changed: members that still have the other one refuse this node, and are refused", "authority", ca.Subject.CommonName)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	k.stamp, k.cert, k.roots, k.issuer = stamp, &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, pool, ca.SubjectKeyId
	return nil
}

// current is what the files say now, or what they said when they were last right.
func (k *Keyring) current() (*tls.Certificate, *x509.CertPool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	// A reader's clock, not the certificate's: only how often files are looked at depends on it.
	if t := time.Now(); t.Sub(k.looked) >= lookAgain {
		k.looked = t
		stamp, err := k.fingerprint()
		if err == nil && stamp != k.stamp {
			if err = k.load(stamp, true); err == nil {
				k.log.Info("certificate read again", "valid_until", k.cert.Leaf.NotAfter)
			}
		}
		switch {
		case err == nil:
			k.said = ""
		case err.Error() != k.said:
			k.said = err.Error()
			k.log.Error("read the cluster's keys; the old ones stay in use", "err", err)
		}
	}
	return k.cert, k.roots
}

// Name is the member's name in its certificate.
func (k *Keyring) Name() string {
	c, _ := k.current()
	return memberOf(c.Leaf)
}

// Key is the public key of the member's certificate, as in Peer.
func (k *Keyring) Key() string {
	c, _ := k.current()
	return keyOf(c.Leaf)
}

// Dir is where the files are.
func (k *Keyring) Dir() string { return k.dir }

// Expiry is when the certificate ends, and whether it is to be renewed by now: two thirds of its life are over.
func (k *Keyring) Expiry() (end time.Time, renew bool) {
	c, _ := k.current()
	life := c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)
	return c.Leaf.NotAfter, k.now().After(c.Leaf.NotBefore.Add(life * 2 / 3))
}

// Early is when the certificate begins, if that is still to come: then it is this node's clock that is off, most likely.
func (k *Keyring) Early() (begins time.Time, early bool) {
	c, _ := k.current()
	return c.Leaf.NotBefore, k.now().Before(c.Leaf.NotBefore)
}

// config is for both sides of a connection.
func (k *Keyring) config(allowed func(Peer) error, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, _ := k.current()
			return c, nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, _ := k.current()
			return c, nil
		},
		ClientAuth: tls.RequestClientCert, // whether it is there and whose is judged below, by name
		// Members are known by the authority and their names, not by host names: all is checked in VerifyConnection, on both sides.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true, // a resumed connection would not show its certificate again
		VerifyConnection:       func(s tls.ConnectionState) error { return k.verify(s, allowed) },
	}
}

// serve is config for the side that is dialled. The library judges first, because it says by the right alert that a certificate is not valid at our time: so a peer
// hears that a clock is off, and need not guess. who it is comes from verify, as on the other side.
func (k *Keyring) serve(allowed func(Peer) error, protocols ...string) *tls.Config {
	c := k.config(allowed, protocols...)
	c.ClientAuth, c.Time = tls.VerifyClientCertIfGiven, k.now // none at all is named below
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := c.Clone()
		now.GetConfigForClient = nil
		_, now.ClientCAs = k.current()
		return now, nil
	}
	return c
}

// named says in our words, and with the kind that it counts as, what the library found wrong with a certificate, or what the other side's alert means.
func (k *Keyring) named(err error) error {
	var r *refused
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var bad *x509.Certificate
	switch {
	case err == nil, errors.As(err, &r):
		return err
	case errors.As(err, &unknown):
		bad = unknown.Cert
	case errors.As(err, &invalid):
		bad = invalid.Cert
	case strings.HasSuffix(err.Error(), "remote error: tls: expired certificate"):
		c, _ := k.current()
		return refuse(RefusedClock, "it finds that the certificate of %s (%s until %s) is not valid now, and here it is %s: one of the two clocks is off", memberOf(c.Leaf),
			stamp(c.Leaf.NotBefore), stamp(c.Leaf.NotAfter), stamp(k.now()))
	}
	if bad == nil {
		return err
	}
	if why := k.judge(bad); why != nil {
		return why
	}
	return refuse(RefusedAuthority, "the peer's certificate (%s): %w", bad.Subject, err)
}

// verify judges a peer's certificate.
func (k *Keyring) verify(s tls.ConnectionState, allowed func(Peer) error) error {
	chain := s.PeerCertificates
	if len(chain) == 0 {
		return refuse(RefusedNoCertificate, "the peer has shown no certificate")
	}
	if err := k.judge(chain[0]); err != nil || allowed == nil {
		return err
	}
	return allowed(peer(s))
}

// judge says what is wrong with the certificate of a peer, by itself.
func (k *Keyring) judge(c *x509.Certificate) error {
	_, roots := k.current()
	now, name := k.now(), memberOf(c)
	// First by the authority alone, at a time at which the certificate is valid: so that a wrong clock is not called a wrong authority.
	at := c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return refuse(RefusedAuthority, "the peer's certificate (%s, issued by %s) is of another authority than this cluster's", c.Subject, c.Issuer)
		}
		return refuse(RefusedAuthority, "the peer's certificate (%s): %w", c.Subject, err)
	}
	switch {
	case name == "":
		return refuse(RefusedNotMember, "the peer's certificate (%s) is not a member's", c.Subject)
	case now.Before(c.NotBefore):
		return refuse(RefusedClock, "the certificate of %s is valid from %s, here it is %s: one of the two clocks is off by %s or more", name,
			c.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), c.NotBefore.Sub(now).Round(time.Second))
	case now.After(c.NotAfter):
		return refuse(RefusedClock, "the certificate of %s was valid until %s, here it is %s: renew it, or mend the clock that is off", name,
			c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}
