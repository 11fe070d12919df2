package transport

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Names of the files in a client's directory of keys, beside AuthorityCert.
const (
	ClientCert = "client.crt"
	ClientKey  = "client.key"
)

// ClientLife is how long a client's certificate is good for unless another time is asked for.
const ClientLife = 365 * 24 * time.Hour

// Role is what a client may do with a node's interface.
type Role string

// The roles.
const (
	RoleOperator Role = "operator"
	RoleReadOnly Role = "read-only"
	RoleTenant   Role = "tenant"
)

// Client is who a client's certificate says that it is.
type Client struct {
	Name   string
	Role   Role
	Tenant string // of RoleTenant alone
}

// ParseRole reads what people write: "operator", "read-only" or "tenant=NAME".
func ParseRole(s string) (Role, string, error) {
	name, tenant, has := strings.Cut(s, "=")
	switch r := Role(name); {
	case (r == RoleOperator || r == RoleReadOnly) && !has:
		return r, "", nil
	case r == RoleTenant && has && tenant != "":
		return r, tenant, nil
	}
	return "", "", fmt.Errorf("role %q: want operator, read-only or tenant=NAME", s)
}

// String is the client as people call it.
func (c Client) String() string {
	if c.Role == RoleTenant {
		return fmt.Sprintf("%s (tenant %s)", c.Name, c.Tenant)
	}
	return fmt.Sprintf("%s (%s)", c.Name, c.Role)
}

func (c Client) check() error {
	for what, s := range map[string]string{"a client's name": c.Name, "a tenant's name": c.Tenant} {
		if what == "a tenant's name" && c.Role != RoleTenant {
			if s != "" {
				return fmt.Errorf("role %s with a tenant", c.Role)
			}
			continue
		}
		if s == "" || len(s) > 64 || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }) {
			return fmt.Errorf("%q: %s has 1 to 64 bytes and no control characters", s, what)
		}
	}
	switch c.Role {
	case RoleOperator, RoleReadOnly, RoleTenant:
		return nil
	}
	return fmt.Errorf("there is no role %q", c.Role)
}

// uri says in a certificate that it is a client's, whose, and what that one may do.
func (c Client) uri() *url.URL {
	q := url.Values{"role": {string(c.Role)}}
	if c.Role == RoleTenant {
		q.Set("tenant", c.Tenant)
	}
	return &url.URL{Scheme: "demarc", Host: "client", Path: "/" + c.Name, RawQuery: q.Encode()}
}

// clientOf reads a client's certificate. One that says anything else beside, or says it otherwise than IssueClient does, is none: what it grants must
// have one meaning.
func clientOf(c *x509.Certificate) (Client, error) {
	none := func(why string) (Client, error) {
		return Client{}, fmt.Errorf("the certificate (%s) is not a client's: %s: make one with `demarc cluster client`", c.Subject, why)
	}
	if c.IsCA {
		return none("it is an authority's")
	}
	if memberOf(c) != "" {
		return none("it is a member's")
	}
	if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return none("it is not for clients")
	}
	if len(c.URIs) != 1 {
		return none("it names no role")
	}
	u := c.URIs[0]
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil || u.Scheme != "demarc" || u.Host != "client" {
		return none("it names no role")
	}
	who := Client{Name: strings.TrimPrefix(u.Path, "/"), Role: Role(q.Get("role")), Tenant: q.Get("tenant")}
	if err := who.check(); err != nil {
		return none(err.Error())
	}
	if who.uri().String() != u.String() {
		return none("its role is written in a way that has more than one meaning")
	}
	return who, nil
}

// IssueClient writes key, certificate and the authority's certificate for a client into dir, for life from now, 0 = ClientLife. What is there of the same
// authority is replaced.
func (a *Authority) IssueClient(dir string, c Client, life time.Duration, now time.Time) (until time.Time, err error) {
	if err := c.check(); err != nil {
		return until, err
	}
	until = now.Add(cmp.Or(life, ClientLife))
	switch {
	case !until.After(now):
		return until, errors.New("a certificate's life must be longer than nothing")
	case now.After(a.cert.NotAfter):
		return until, fmt.Errorf("the authority's own certificate was valid until %s, here it is %s: make another authority, or mend the clock", stamp(a.cert.NotAfter), stamp(now))
	case until.After(a.cert.NotAfter):
		until = a.cert.NotAfter
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return until, err
	}
	ca := filepath.Join(dir, AuthorityCert)
	if have, err := readCert(ca); err == nil && !bytes.Equal(have.Raw, a.cert.Raw) {
		return until, fmt.Errorf("%s is of another authority: name another directory", ca)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return until, err
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return until, err
	}
	t := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: c.Name}, URIs: []*url.URL{c.uri()}, NotBefore: now.Add(-backdate),
		NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, pub, a.key)
	if err != nil {
		return until, err
	}
	if err := writePEM(ca, "CERTIFICATE", a.cert.Raw, 0o644); err != nil {
		return until, err
	}
	if err := writePEM(filepath.Join(dir, ClientCert), "CERTIFICATE", der, 0o644); err != nil {
		return until, err
	}
	return until.UTC().Truncate(time.Second), writeKey(filepath.Join(dir, ClientKey), key)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// RefusedNotClient counts those whose certificate is of the authority and not a client's.
const RefusedNotClient Refusal = "not_a_client"

// RefusedRevoked counts clients whose certificates are good and were revoked.
const RefusedRevoked Refusal = "revoked"

// ClientRefusals lists the kinds that a server for clients counts.
var ClientRefusals = []Refusal{RefusedNoCertificate, RefusedAuthority, RefusedClock, RefusedNotClient, RefusedRevoked, RefusedHandshake}

// KeyOf is by what a certificate is revoked: SHA-256 of its public key, 64 hex digits.
func KeyOf(c *x509.Certificate) string { return keyOf(c) }

// ReadClient says whose a client's certificate in a file is, and its key as KeyOf.
func ReadClient(file string) (who Client, key string, err error) {
	c, err := readCert(file)
	if err != nil {
		return who, "", err
	}
	if who, err = clientOf(c); err != nil {
		return who, "", fmt.Errorf("%s: %w", file, err)
	}
	return who, keyOf(c), nil
}

// Client judges a client's certificate by the authority and the time that hold now.
func (k *Keyring) Client(chain []*x509.Certificate) (Client, error) {
	if len(chain) == 0 {
		return Client{}, refuse(RefusedNoCertificate, "no certificate was shown")
	}
	_, roots := k.current()
	c, now := chain[0], k.now()
	if err := ofAuthority(c, roots); err != nil {
		return Client{}, refuse(RefusedAuthority, "the certificate (%s, issued by %s) is of another authority than this cluster's: %w", c.Subject, c.Issuer, err)
	}
	who, err := clientOf(c)
	switch {
	case err != nil:
		return Client{}, &refused{RefusedNotClient, err}
	case now.Before(c.NotBefore):
		return Client{}, refuse(RefusedClock, "the certificate of %s is valid from %s, here it is %s: one of the two clocks is off", who.Name, stamp(c.NotBefore), stamp(now))
	case now.After(c.NotAfter):
		return Client{}, refuse(RefusedClock, "the certificate of %s was valid until %s, here it is %s: renew it, or mend the clock that is off", who.Name, stamp(c.NotAfter), stamp(now))
	}
	return who, nil
}

// ofAuthority verifies a certificate at a time at which it is valid, so that a wrong clock is not called a wrong authority. What it is for is another
// question.
func ofAuthority(c *x509.Certificate, roots *x509.CertPool) error {
	at := c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
	_, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// ServeClients is for a server whose clients must show a client's certificate. The checks of the library come first, because it tells the client by
// the right alert what is wrong; then Client's.
func (k *Keyring) ServeClients() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, roots := k.current()
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				NextProtos:             []string{"http/1.1"},
				Certificates:           []tls.Certificate{*cert},
				ClientAuth:             tls.RequireAndVerifyClientCert,
				ClientCAs:              roots,
				Time:                   k.now,
				SessionTicketsDisabled: true, // a resumed connection would not show its certificate again
				VerifyConnection: func(s tls.ConnectionState) error {
					_, err := k.Client(s.PeerCertificates)
					return err
				},
			}, nil
		},
	}
}

// ClientRefusal sorts what ended a handshake with ServeClients, or what Client says.
func ClientRefusal(err error) Refusal {
	var r *refused
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &r):
		return r.kind
	case errors.As(err, &unknown):
		return RefusedAuthority
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return RefusedClock
	case errors.As(err, &invalid):
		return RefusedNotClient
	case err != nil && strings.Contains(err.Error(), "didn't provide a certificate"): // the library has no type for it
		return RefusedNoCertificate
	}
	return RefusedHandshake
}

// ClientKeys is a client's certificate, key and authority.
type ClientKeys struct {
	Client
	dir   string
	cert  *tls.Certificate
	roots *x509.CertPool
	now   func() time.Time
}

// OpenClientKeys reads a client's directory of keys. The error names the file that is wrong.
func OpenClientKeys(dir string, now func() time.Time) (*ClientKeys, error) {
	ca, err := readCert(filepath.Join(dir, AuthorityCert))
	if err != nil {
		return nil, err
	}
	name := filepath.Join(dir, ClientCert)
	cert, err := readCert(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: make it with `demarc cluster client` where the authority's key is", err)
	} else if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, ClientKey))
	if err != nil {
		return nil, err
	}
	if pub, ok := cert.PublicKey.(ed25519.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, fmt.Errorf("%s: %s and %s do not belong together", dir, ClientCert, ClientKey)
	}
	who, err := clientOf(cert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("%s: is not signed by the authority in %s: %w", name, AuthorityCert, err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &ClientKeys{Client: who, dir: dir, roots: pool, now: now, cert: &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}}, nil
}

// TLS shows the certificate to nodes of its authority, and takes none but them. A node is known by authority and by being a member, not by the name that
// it was asked by.
func (k *ClientKeys) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		// Always, also when the node names other authorities: then it says what is wrong.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return k.cert, nil },
		InsecureSkipVerify:   true, // by its own rules, which would want a host name; node checks all the rest
		VerifyConnection:     func(s tls.ConnectionState) error { return k.node(s.PeerCertificates) },
	}
}

// node judges the certificate of the other side.
func (k *ClientKeys) node(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return refuse(RefusedNoCertificate, "the node has shown no certificate")
	}
	c, now := chain[0], k.now()
	if err := ofAuthority(c, k.roots); err != nil {
		return refuse(RefusedAuthority, "the node's certificate (%s, issued by %s) is not of the authority in %s: are these keys of its cluster?", c.Subject, c.Issuer, filepath.Join(k.dir, AuthorityCert))
	}
	name := memberOf(c)
	switch {
	case name == "" || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		return refuse(RefusedNotMember, "what answers there has a certificate (%s) of the cluster's authority, but not a member's: it is no node", c.Subject)
	case now.Before(c.NotBefore):
		return refuse(RefusedClock, "the certificate of node %s is valid from %s, here it is %s: one of the two clocks is off", name, stamp(c.NotBefore), stamp(now))
	case now.After(c.NotAfter):
		return refuse(RefusedClock, "the certificate of node %s was valid until %s, here it is %s: renew it there, or mend the clock here", name, stamp(c.NotAfter), stamp(now))
	}
	return nil
}

// Why says what is behind an error of a connection; nil where it is nothing about certificates. What the node found comes as an alert, a word or two.
func (k *ClientKeys) Why(err error) error {
	var r *refused
	if errors.As(err, &r) {
		return r
	}
	_, alert, is := strings.Cut(err.Error(), "remote error: tls: ")
	if !is {
		return nil
	}
	file, c := filepath.Join(k.dir, ClientCert), k.cert.Leaf
	switch {
	case strings.HasPrefix(alert, "unknown certificate authority"):
		return fmt.Errorf("the node does not know the authority of %s: is ca.crt there another one than here?", file)
	case strings.HasPrefix(alert, "expired certificate"):
		return fmt.Errorf("the node finds that %s is not valid now: it is valid from %s until %s, and here it is %s: renew it with `demarc cluster client`, or mend the clock that is off",
			file, stamp(c.NotBefore), stamp(c.NotAfter), stamp(k.now()))
	}
	return fmt.Errorf("the node refuses %s (%s): its log says why", file, alert)
}
