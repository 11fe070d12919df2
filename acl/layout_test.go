package acl

import (
	"reflect"
	"testing"
)

func TestLayout(t *testing.T) {
	for _, tc := range []struct {
		name      string
		got, want uintptr
	}{
		{"node", reflect.TypeFor[node]().Size(), nodeBytes},
		{"entry", reflect.TypeFor[entry]().Size(), entryBytes},
		{"Program", reflect.TypeFor[Program]().Size(), programBytes},
	} {
		if tc.got != tc.want {
			t.Errorf("%s is %d bytes, want %d", tc.name, tc.got, tc.want)
		}
	}
}
