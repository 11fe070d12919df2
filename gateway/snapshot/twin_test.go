package snapshot

import (
	"reflect"
	"sync/atomic"
	"testing"

	"demarc/gateway/police"
)

// Every word of Shared is copied, also one that somebody adds.
func TestATwinCopiesAllThatTenantsShare(t *testing.T) {
	from, to := &Shared{Words: &[2]police.Words{}}, &Shared{Words: &[2]police.Words{}}
	n := uint64(0)
	var walk func(a, b reflect.Value, set bool)
	walk = func(a, b reflect.Value, set bool) {
		switch x := a.Addr().Interface().(type) {
		case *atomic.Uint64:
			if n++; set {
				x.Store(n)
			} else if got := b.Addr().Interface().(*atomic.Uint64).Load(); got != n {
				t.Errorf("word %d is %d", n, got)
			}
			return
		case *atomic.Int64:
			if n++; set {
				x.Store(int64(n))
			} else if got := b.Addr().Interface().(*atomic.Int64).Load(); got != int64(n) {
				t.Errorf("word %d is %d", n, got)
			}
			return
		case **[2]police.Words: // they lie elsewhere, and those of a twin too
			if *x == *b.Addr().Interface().(**[2]police.Words) {
				t.Error("the twin has the same rate words")
			}
			walk(a.Elem(), b.Elem(), set)
			return
		case **Hits: // counters: a twin has its own, which nobody reads
			return
		}
		switch a.Kind() {
		case reflect.Struct:
			for i := range a.NumField() {
				walk(a.Field(i), b.Field(i), set)
			}
		case reflect.Array:
			for i := range a.Len() {
				walk(a.Index(i), b.Index(i), set)
			}
		default:
			t.Fatalf("a %s in Shared: say here, and in Shared.copy, how it is copied", a.Type())
		}
	}
	walk(reflect.ValueOf(from).Elem(), reflect.ValueOf(to).Elem(), true)
	to.copy(from)
	n = 0
	walk(reflect.ValueOf(from).Elem(), reflect.ValueOf(to).Elem(), false)
	if n < 10 {
		t.Fatalf("only %d words found", n)
	}
}
