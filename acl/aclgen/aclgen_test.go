package aclgen

import (
	"reflect"
	"testing"

	"demarc/acl"
	"demarc/acl/aclref"
)

func TestSameSeedSameList(t *testing.T) {
	for i, kind := range Kinds {
		o := Options{Kind: kind, V6: 0.3}
		a, b, c := Rules(1, 200, o), Rules(1, 200, o), Rules(2, 200, o)
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s: two lists of one seed differ", KindNames[i])
		}
		if reflect.DeepEqual(a, c) {
			t.Errorf("%s: the seed does not matter", KindNames[i])
		}
		if !reflect.DeepEqual(Keys(1, a, 50), Keys(1, a, 50)) {
			t.Errorf("%s: keys of one seed differ", KindNames[i])
		}
	}
}

func TestLastOnlyMatchesLast(t *testing.T) {
	keys := Inside(3, 20)
	for i, kind := range Kinds {
		for _, n := range []int{1, 2, 300} {
			rules := LastOnly(4, n, Options{Kind: kind}, keys...)
			for _, k := range keys {
				want := acl.Match{Index: uint32(n - 1), Found: true, Allow: true}
				if got := aclref.Lookup(rules, &k); len(rules) != n || got != want {
					t.Fatalf("%s: %d rules, key %+v: got %+v", KindNames[i], len(rules), k, got)
				}
			}
		}
	}
}

// TestKeysReachRules guards the random tests of acl: keys that hit nothing would compare nothing.
func TestKeysReachRules(t *testing.T) {
	for i, kind := range Kinds {
		rules := Rules(5, 500, Options{Kind: kind, V6: 0.5})
		seen, found := map[uint32]bool{}, 0
		keys := Keys(6, rules, 1000)
		for _, k := range keys {
			if m := aclref.Lookup(rules, &k); m.Found {
				found++
				seen[m.Index] = true
			}
		}
		if found < 200 || found > 950 || len(seen) < 100 {
			t.Errorf("%s: %d of 1000 keys match, %d different rules", KindNames[i], found, len(seen))
		}
	}
}
