package transport

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func clientKeys(t testing.TB, a *Authority, c Client, now func() time.Time) *ClientKeys {
	t.Helper()
	dir := t.TempDir()
	if _, err := a.IssueClient(dir, c, 0, noon); err != nil {
		t.Fatal(err)
	}
	k, err := OpenClientKeys(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// meet shakes hands between a server for clients and a client, and says what each found.
func meet(t testing.TB, server, client *tls.Config) (atServer, atClient error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		s := tls.Server(c, server)
		if err = s.Handshake(); err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
		_, _ = c.Read(make([]byte, 1)) // until the client has read what was said
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	s := tls.Client(c, client)
	if atClient = s.Handshake(); atClient == nil {
		_, atClient = s.Read(make([]byte, 1))
	}
	c.Close()
	return <-done, atClient
}

func TestClientsAndNodesKnowEachOther(t *testing.T) {
	a, c := authority(t), at(noon)
	node := keys(t, a, "gw1", c.now)
	for _, want := range []Client{{"alice", RoleOperator, ""}, {"noc", RoleReadOnly, ""}, {"portal", RoleTenant, "alpha"}, {"a b/c?d=e&role=operator", RoleTenant, "x&role=operator"}, {"Ünal", RoleReadOnly, ""}} {
		k := clientKeys(t, a, want, c.now)
		if s, e := meet(t, node.ServeClients(), k.TLS()); s != nil || e != nil {
			t.Errorf("%+v: %v, %v", want, s, e)
		}
		if got, err := node.Client([]*x509.Certificate{k.cert.Leaf}); err != nil || got != want || k.Client != want {
			t.Errorf("%+v, %+v, %v: want %+v", got, k.Client, err, want)
		}
	}
}

// TestWrongCertificates: who is not a client is no client, who is not a node is no node, and each is told which.
func TestWrongCertificates(t *testing.T) {
	a, other, c := authority(t), authority(t), at(noon)
	node := keys(t, a, "gw1", c.now)
	alice := Client{"alice", RoleOperator, ""}
	own := at(noon) // the client's clock
	good := clientKeys(t, a, alice, own.now)
	foreign := clientKeys(t, other, alice, own.now)
	foreign.roots = good.roots // it trusts our node
	show := func(cert *tls.Certificate) *ClientKeys {
		k := *good
		k.cert = cert
		return &k
	}
	member, _ := node.current()
	for name, x := range map[string]struct {
		client *ClientKeys
		after  time.Duration // of the node's clock
		kind   Refusal
		says   string // to the client
	}{
		"another authority": {foreign, 0, RefusedAuthority, "does not know the authority"},
		"a member":          {show(member), 0, RefusedNotClient, "the node refuses"},
		"expired":           {good, ClientLife + time.Hour, RefusedClock, "is not valid now"},
		"not valid yet":     {good, -2 * time.Hour, RefusedClock, "is not valid now"},
		"no role":           {show(sign(t, a, nil, x509.ExtKeyUsageClientAuth)), 0, RefusedNotClient, "the node refuses"},
		"a role too many":   {show(sign(t, a, []string{"demarc://client/x?role=read-only", "demarc://client/x?role=operator"}, x509.ExtKeyUsageClientAuth)), 0, RefusedNotClient, "the node refuses"},
		"for servers alone": {show(sign(t, a, []string{"demarc://client/x?role=operator"}, x509.ExtKeyUsageServerAuth)), 0, RefusedNotClient, "the node refuses"},
	} {
		c.ns.Store(noon.Add(x.after).UnixNano())
		atServer, atClient := meet(t, node.ServeClients(), x.client.TLS())
		if atServer == nil || ClientRefusal(atServer) != x.kind {
			t.Errorf("%s: the node finds %v (%s), want %s", name, atServer, ClientRefusal(atServer), x.kind)
		}
		if atClient == nil || x.client.Why(atClient) == nil || !strings.Contains(x.client.Why(atClient).Error(), x.says) {
			t.Errorf("%s: the client is told %v: want %q", name, atClient, x.says)
		}
		// What a handshake would refuse, a request on a connection that stands is refused too.
		if _, err := node.Client([]*x509.Certificate{x.client.cert.Leaf}); err == nil || ClientRefusal(err) != x.kind {
			t.Errorf("%s: judged again: %v", name, err)
		}
	}
	c.ns.Store(noon.UnixNano())
	none := &tls.Config{InsecureSkipVerify: true}
	if s, _ := meet(t, node.ServeClients(), none); s == nil || ClientRefusal(s) != RefusedNoCertificate {
		t.Errorf("no certificate: %v", s)
	}
	if s, e := meet(t, node.ServeClients(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); s == nil || e == nil || ClientRefusal(s) != RefusedHandshake {
		t.Errorf("TLS 1.2: %v, %v", s, e)
	}
	if _, err := node.Client(nil); ClientRefusal(err) != RefusedNoCertificate {
		t.Errorf("%v", err)
	}
	// A client's certificate opens no port of the cluster.
	if err := node.verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{good.cert.Leaf}}, nil); err == nil || !strings.Contains(err.Error(), "is not a member's") {
		t.Errorf("a client among members: %v", err)
	}

	// The other way round: what serves is not what it should be.
	serve := func(cert *tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert}
	}
	theirs, _ := keys(t, other, "gw1", c.now).current()
	for name, x := range map[string]struct {
		cert  *tls.Certificate
		after time.Duration // of the client's clock
		says  string
	}{
		"another authority":       {theirs, 0, "is not of the authority in"},
		"another client":          {good.cert, 0, "but not a member's"}, // nor for servers
		"no member":               {sign(t, a, nil, x509.ExtKeyUsageServerAuth), 0, "but not a member's"},
		"a client's, for servers": {sign(t, a, []string{"demarc://client/x?role=operator"}, x509.ExtKeyUsageServerAuth), 0, "but not a member's"},
		"expired":                 {member, MemberLife + time.Hour, "was valid until"},
		"not valid yet":           {member, -2 * time.Hour, "one of the two clocks is off"},
	} {
		own.ns.Store(noon.Add(x.after).UnixNano())
		if _, err := meet(t, serve(x.cert), good.TLS()); err == nil || good.Why(err) == nil || !strings.Contains(good.Why(err).Error(), x.says) {
			t.Errorf("a node with %s: %v, want %q", name, err, x.says)
		}
	}
	if good.Why(errors.New("connection refused")) != nil {
		t.Error("says something about certificates where it is nothing about them")
	}
}

// sign makes a certificate that Issue and IssueClient never would.
func sign(t testing.TB, a *Authority, uris []string, use ...x509.ExtKeyUsage) *tls.Certificate {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: "x"}, NotBefore: noon.Add(-backdate), NotAfter: noon.Add(MemberLife), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: use}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = append(c.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, pub, a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestOneMeaning: what a certificate grants can be read in one way, or it grants nothing.
func TestOneMeaning(t *testing.T) {
	a := authority(t)
	for _, uri := range []string{
		"demarc://client/x", "demarc://client/x?role=", "demarc://client/x?role=root", "demarc://client/x?role=operator&role=read-only", "demarc://client/x?role=read-only&role=operator",
		"demarc://client/x?role=operator&tenant=alpha", "demarc://client/x?role=tenant", "demarc://client/x?role=tenant&tenant=", "demarc://client/x?role=tenant&tenant=a&tenant=b", "demarc://client/?role=operator",
		"demarc://client?role=operator", "demarc://client/x?role=operator&more=1", "demarc://client/x?role=operator#x", "demarc://u@client/x?role=operator", "demarc://client:1/x?role=operator", "demarc://Client/x?role=operator",
		"demarc://member/x?role=operator", "https://client/x?role=operator", "demarc://client/x?Role=operator", "demarc://client/x?role=operator;tenant=a", "demarc://client/%00?role=operator",
		"demarc://client/" + strings.Repeat("x", 65) + "?role=operator",
	} {
		if c, err := clientOf(sign(t, a, []string{uri}, x509.ExtKeyUsageClientAuth).Leaf); err == nil {
			t.Errorf("%s grants %+v", uri, c)
		}
	}
	if c, err := clientOf(sign(t, a, []string{"demarc://client/x?role=operator"}, x509.ExtKeyUsageClientAuth).Leaf); err != nil || c.Role != RoleOperator {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestIssueClient(t *testing.T) {
	a, other := authority(t), authority(t)
	dir := filepath.Join(t.TempDir(), "keys")
	until, err := a.IssueClient(dir, Client{"alice", RoleOperator, ""}, 90*24*time.Hour, noon)
	if err != nil || !until.Equal(noon.Add(90*24*time.Hour)) {
		t.Fatalf("%s, %v", until, err)
	}
	for name, want := range map[string]os.FileMode{"": 0o700, AuthorityCert: 0o644, ClientCert: 0o644, ClientKey: 0o600} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%q: %v, %v", name, st.Mode(), err)
		}
	}
	if _, err := a.IssueClient(dir, Client{"alice", RoleReadOnly, ""}, 0, noon); err != nil { // another one in its place
		t.Error(err)
	}
	if k, err := OpenClientKeys(dir, at(noon).now); err != nil || k.Role != RoleReadOnly {
		t.Errorf("%+v, %v", k, err)
	}
	if _, err := other.IssueClient(dir, Client{"alice", RoleOperator, ""}, 0, noon); err == nil || !strings.Contains(err.Error(), "is of another authority") {
		t.Errorf("over another authority's: %v", err)
	}
	// No certificate outlives its authority.
	if until, err := a.IssueClient(dir, Client{"alice", RoleOperator, ""}, 0, noon.Add(AuthorityLife-time.Hour)); err != nil || !until.Equal(noon.Add(AuthorityLife)) {
		t.Errorf("%s, %v", until, err)
	}
	if _, err := a.IssueClient(dir, Client{"alice", RoleOperator, ""}, 0, noon.Add(AuthorityLife+time.Hour)); err == nil || !strings.Contains(err.Error(), "the authority's own certificate was valid until") {
		t.Errorf("%v", err)
	}
	for _, c := range []Client{{"", RoleOperator, ""}, {"a\nb", RoleOperator, ""}, {strings.Repeat("a", 65), RoleOperator, ""}, {"a", "", ""}, {"a", "admin", ""}, {"a", RoleTenant, ""}, {"a", RoleOperator, "alpha"}, {"a", RoleTenant, "x\x00"}} {
		if _, err := a.IssueClient(t.TempDir(), c, 0, noon); err == nil {
			t.Errorf("%+v got a certificate", c)
		}
	}
	for s, want := range map[string]Client{"operator": {Role: RoleOperator}, "read-only": {Role: RoleReadOnly}, "tenant=a": {Role: RoleTenant, Tenant: "a"}, "tenant=a=b": {Role: RoleTenant, Tenant: "a=b"},
		"": {}, "tenant": {}, "tenant=": {}, "operator=x": {}, "Operator": {}, "admin": {}} {
		r, tenant, err := ParseRole(s)
		if r != want.Role || tenant != want.Tenant || (err != nil) != (want.Role == "") {
			t.Errorf("%q: %s, %s, %v", s, r, tenant, err)
		}
	}
}

func TestBadClientKeys(t *testing.T) {
	a, other := authority(t), authority(t)
	for name, c := range map[string]struct {
		do   func(dir string) error
		says string
	}{
		"no certificate": {func(dir string) error { return os.Remove(filepath.Join(dir, ClientCert)) }, "demarc cluster client"},
		"no key":         {func(dir string) error { return os.Remove(filepath.Join(dir, ClientKey)) }, ClientKey},
		"no authority":   {func(dir string) error { return os.Remove(filepath.Join(dir, AuthorityCert)) }, AuthorityCert},
		"open to others": {func(dir string) error { return os.Chmod(filepath.Join(dir, ClientKey), 0o644) }, "chmod 600"},
		"another key":    {func(dir string) error { return writeKey(filepath.Join(dir, ClientKey), other.key) }, "do not belong together"},
		"a member's": {func(dir string) error {
			if err := a.Issue(dir, "gw1", noon); err != nil {
				return err
			}
			return errors.Join(os.Rename(filepath.Join(dir, MemberCert), filepath.Join(dir, ClientCert)), os.Rename(filepath.Join(dir, MemberKey), filepath.Join(dir, ClientKey)))
		}, "it is a member's"},
		"another authority": {func(dir string) error {
			return writePEM(filepath.Join(dir, AuthorityCert), "CERTIFICATE", other.cert.Raw, 0o644)
		}, "is not signed by the authority"},
	} {
		dir := t.TempDir()
		if _, err := a.IssueClient(dir, Client{"alice", RoleOperator, ""}, 0, noon); err != nil {
			t.Fatal(err)
		}
		if err := c.do(dir); err != nil {
			t.Fatal(err)
		}
		_, err := OpenClientKeys(dir, at(noon).now)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: a key in an error: %v", name, err)
		}
	}
}

// TestHostName: curl and browsers look for a host's name in a node's certificate.
func TestHostName(t *testing.T) {
	for name, want := range map[string]int{"gw1": 1, "gw1.example": 1, "a b": 0, "-x": 0, "x-": 0, "x..y": 0, "ü": 0, "x_y": 0, strings.Repeat("x", 64): 0} {
		if got := hostName(name); len(got) != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// file is a file as its system describes it.
type file struct {
	fs.FileInfo
	mode fs.FileMode
	uid  uint32
}

func (f file) Mode() fs.FileMode { return f.mode }
func (f file) Sys() any          { return &syscall.Stat_t{Uid: f.uid} }

// TestPrivate: a key is ours alone, or it is refused with what mends it.
func TestPrivate(t *testing.T) {
	for _, c := range []struct {
		key, dir file
		euid     int
		says     string // "" = good
	}{
		{file{mode: 0o600}, file{mode: 0o755}, 0, ""}, {file{mode: 0o400}, file{mode: 0o700}, 0, ""}, {file{mode: 0o600, uid: 7}, file{mode: 0o700, uid: 7}, 7, ""}, {file{mode: 0o600}, file{mode: 0o755}, 7, ""},
		{file{mode: 0o600, uid: 7}, file{mode: fs.ModeSticky | 0o777}, 7, ""},
		{file{mode: 0o640}, file{mode: 0o700}, 0, "chmod 600"}, {file{mode: 0o604}, file{mode: 0o700}, 0, "chmod 600"}, {file{mode: 0o620}, file{mode: 0o700}, 0, "chmod 600"},
		{file{mode: 0o600, uid: 7}, file{mode: 0o700}, 0, "k/x.key: it belongs to user 7"}, {file{mode: 0o600}, file{mode: 0o700, uid: 7}, 0, "k: it belongs to user 7"},
		{file{mode: 0o600, uid: 8}, file{mode: 0o700, uid: 7}, 7, "k/x.key: it belongs to user 8"},
		{file{mode: 0o600}, file{mode: 0o777}, 0, "chmod 700"},
	} {
		err := private("k/x.key", c.key, c.dir, c.euid)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%v %d in %v %d for %d: %v, want %q", c.key.mode, c.key.uid, c.dir.mode, c.dir.uid, c.euid, err, c.says)
		}
	}
}
