package transport

import (
	"net"
	"testing"
)

// A node listens on an address that is to come as well as on one that is there, and is told which it is; what is taken, or is no address, it does not.
func TestListenTCP(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:0": true, "127.0.0.9:0": true, ":0": true, "[::]:0": true, "198.51.100.77:0": false, "[2001:db8::77]:0": false} {
		l, here, err := ListenTCP(address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if here != want {
			t.Errorf("%s: here = %v", address, here)
		}
		if _, _, err := ListenTCP(l.Addr().String()); err == nil {
			t.Errorf("%s is taken, and listened on twice", l.Addr())
		}
		if want && address != "[::]:0" && address != ":0" {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Errorf("%s: %v", address, err)
			} else {
				c.Close()
			}
		}
		l.Close()
	}
	for _, address := range []string{"198.51.100.77", "198.51.100.777:80", "198.51.100.77:99999"} {
		if l, _, err := ListenTCP(address); err == nil {
			t.Errorf("%s: listens on %s", address, l.Addr())
		}
	}
}
