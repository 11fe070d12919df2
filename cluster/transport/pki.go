package transport

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"demarc/cluster/store"
)

// Names of the files in a directory of keys.
const (
	AuthorityCert = "ca.crt"
	AuthorityKey  = "ca.key" // belongs on no gateway, unless the operator wants certificates renewed there
	MemberCert    = "node.crt"
	MemberKey     = "node.key"
)

// How long certificates are good for. A member's is to be renewed at two thirds of its life.
const (
	AuthorityLife = 10 * 365 * 24 * time.Hour
	MemberLife    = 365 * 24 * time.Hour
	backdate      = time.Hour // so that a clock that is a little slow does not refuse a fresh certificate
)

// Authority issues certificates for the members of one cluster.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

// Dir is where its files are.
func (a *Authority) Dir() string { return a.dir }

// NewAuthority makes one in dir, which must not hold one yet. now is wall time.
func NewAuthority(dir, name string, now time.Time) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, f := range []string{AuthorityCert, AuthorityKey} {
		if _, err := os.Stat(filepath.Join(dir, f)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is there already: an authority is made once; name another directory", filepath.Join(dir, f))
		}
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-backdate), NotAfter: now.Add(AuthorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, t, t, pub, key)
	if err != nil {
		return nil, err
	}
	if err := writeKey(filepath.Join(dir, AuthorityKey), key); err != nil {
		return nil, err
	}
	if err := writePEM(filepath.Join(dir, AuthorityCert), "CERTIFICATE", der, 0o644); err != nil {
		return nil, err
	}
	return OpenAuthority(dir)
}

// OpenAuthority reads the one in dir.
func OpenAuthority(dir string) (*Authority, error) {
	cert, err := readCert(filepath.Join(dir, AuthorityCert))
	if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, AuthorityKey))
	if err != nil {
		return nil, err
	}
	if pub, ok := cert.PublicKey.(ed25519.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, fmt.Errorf("%s: %s and %s do not belong together", dir, AuthorityCert, AuthorityKey)
	}
	return &Authority{dir, cert, key}, nil
}

// Issue writes certificate, key and the authority's certificate for a member into dir. What is there is replaced, the key last.
func (a *Authority) Issue(dir, name string, now time.Time) error {
	if name == "" || len(name) > 255 {
		return errors.New("a certificate needs a member's name of 1 to 255 bytes")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := a.sign(name, pub, now)
	if err != nil {
		return err
	}
	return install(dir, a.cert.Raw, der, key)
}

// Until is when a certificate that is issued at a time ends: the authority's own end, if that is sooner.
func (a *Authority) Until(now time.Time) time.Time {
	if to := now.Add(MemberLife); to.Before(a.cert.NotAfter) {
		return to
	}
	return a.cert.NotAfter
}

// sign makes a member's certificate for a key.
func (a *Authority) sign(name string, pub ed25519.PublicKey, now time.Time) ([]byte, error) {
	from, to := now.Add(-backdate), a.Until(now) // never longer than the authority: what it signs would be called another authority's then
	if from.Before(a.cert.NotBefore) {
		from = a.cert.NotBefore
	}
	if !to.After(from) {
		return nil, fmt.Errorf("the authority was good until %s: make another one, and certificates for all members", a.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	t := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{memberURI(name)}, DNSNames: hostName(name), NotBefore: from,
		NotAfter: to, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	return x509.CreateCertificate(rand.Reader, t, a.cert, pub, a.key)
}

// install writes a member's files.
func install(dir string, ca, cert []byte, key ed25519.PrivateKey) error {
	if err := writePEM(filepath.Join(dir, AuthorityCert), "CERTIFICATE", ca, 0o644); err != nil {
		return err
	}
	// The new key stands beside the old one until the certificate is there: whoever meets that with the old key takes the new one (see memberKey), also behind a loss of power in between.
	if err := writeKey(filepath.Join(dir, pendingKey), key); err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, MemberCert), "CERTIFICATE", cert, 0o644); err != nil {
		return err
	}
	_, err := memberKey(dir, key.Public().(ed25519.PublicKey), true)
	return err
}

// pendingKey is a member's key whose certificate may not be there yet.
const pendingKey = MemberKey + ".new"

// memberKey is the key in dir that fits a certificate's public key. One that waits for its certificate is put in its place, if it is to.
func memberKey(dir string, pub ed25519.PublicKey, put bool) (ed25519.PrivateKey, error) {
	name := filepath.Join(dir, MemberKey)
	key, err := readKey(name)
	if err == nil && pub.Equal(key.Public()) {
		return key, nil
	}
	next, perr := readKey(filepath.Join(dir, pendingKey))
	if perr != nil || !pub.Equal(next.Public()) {
		if err == nil {
			if key, err = readKey(name); err == nil && pub.Equal(key.Public()) { // somebody else has put it there meanwhile
				return key, nil
			}
			err = fmt.Errorf("%s: %s and %s do not belong together", dir, MemberCert, MemberKey)
		}
		return nil, err
	}
	if !put {
		return next, nil
	}
	if err := os.Rename(filepath.Join(dir, pendingKey), name); err != nil && !errors.Is(err, fs.ErrNotExist) { // a directory that is read-only keeps both
		return next, nil
	}
	return next, store.SyncFile(dir)
}

// hostName is the name of a member as others than us look for it in a certificate: curl, or a browser. Members and our own clients go by memberURI.
func hostName(name string) []string {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") ||
			strings.ContainsFunc(label, func(r rune) bool {
				return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
			}) {
			return nil
		}
	}
	return []string{name}
}

// Renewal is a new key that waits for its certificate.
type Renewal struct {
	Request []byte // PKCS #10, DER
	key     ed25519.PrivateKey
}

// NewRenewal makes a key for the member of k.
func (k *Keyring) NewRenewal() (*Renewal, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: k.Name()}}, key)
	return &Renewal{der, key}, err
}

// Renew signs the request of a member whose name is known: what the request says of itself counts for nothing but its key.
func (a *Authority) Renew(request []byte, name string, now time.Time) ([]byte, error) {
	r, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("the request for a certificate: %w", err)
	}
	pub, ok := r.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("the request for a certificate: want an Ed25519 key")
	}
	if name == "" || len(name) > 255 {
		return nil, errors.New("a certificate needs a member's name of 1 to 255 bytes")
	}
	return a.sign(name, pub, now)
}

// Finish writes the certificate that came for a renewal, if it is one for its key, this member and the same authority.
func (k *Keyring) Finish(r *Renewal, cert []byte) error {
	c, err := x509.ParseCertificate(cert)
	if err != nil {
		return fmt.Errorf("the renewed certificate: %w", err)
	}
	ca, err := readCert(filepath.Join(k.dir, AuthorityCert))
	if err != nil {
		return err
	}
	pub, ok := c.PublicKey.(ed25519.PublicKey)
	switch {
	case !ok || !pub.Equal(r.key.Public()):
		return errors.New("the renewed certificate is for another key")
	case memberOf(c) != k.Name():
		return fmt.Errorf("the renewed certificate is for %q, this member is %q", memberOf(c), k.Name())
	}
	if err := c.CheckSignatureFrom(ca); err != nil {
		return fmt.Errorf("the renewed certificate: %w", err)
	}
	return install(k.dir, ca.Raw, cert, r.key)
}

// memberURI says in a certificate that it is a member's, and whose.
func memberURI(name string) *url.URL {
	return &url.URL{Scheme: "demarc", Host: "member", Path: "/" + name}
}

// memberOf is the name in a member's certificate; "" when it is none.
func memberOf(c *x509.Certificate) string {
	for _, u := range c.URIs {
		if u.Scheme == "demarc" && u.Host == "member" && len(u.Path) > 1 {
			return u.Path[1:]
		}
	}
	return ""
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // rand.Reader never fails
	return n
}

func writeKey(name string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(name, "PRIVATE KEY", der, 0o600)
}

// writePEM replaces a file as a whole.
func writePEM(name, kind string, der []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), "new-*")
	if err != nil {
		return err
	}
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return store.SyncFile(filepath.Dir(name)) // of a certificate and its key one alone is none, also behind a loss of power
}

func readPEM(name, kind string) ([]byte, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s: want a PEM block %q", name, kind)
	}
	return block.Bytes, nil
}

func readCert(name string) (*x509.Certificate, error) {
	der, err := readPEM(name, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// private says whether a key's file, or what may be put in its place, is not ours alone. The user that runs the program and root are us.
func private(name string, key, dir fs.FileInfo, euid int) error {
	if p := key.Mode().Perm(); p&0o077 != 0 {
		return fmt.Errorf("%s: its mode is %04o, others may read it: chmod 600 it, and make a new one if they could have", name, p)
	}
	for _, f := range []struct {
		name string
		fs.FileInfo
	}{{name, key}, {filepath.Dir(name), dir}} {
		if st, ok := f.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != euid {
			return fmt.Errorf("%s: it belongs to user %d, who may change it: chown it to who uses it", f.name, st.Uid)
		}
	}
	if m := dir.Mode(); m.Perm()&0o002 != 0 && m&fs.ModeSticky == 0 {
		return fmt.Errorf("%s: its mode is %04o, anybody may put another key there: chmod 700 it", filepath.Dir(name), m.Perm())
	}
	return nil
}

// readKey refuses a key that is not known to be ours alone.
func readKey(name string) (ed25519.PrivateKey, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	dir, err := os.Stat(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	if err := private(name, st, dir, os.Geteuid()); err != nil {
		return nil, err
	}
	der, err := readPEM(name, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: want an Ed25519 key", name)
	}
	return key, nil
}
