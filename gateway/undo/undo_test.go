package undo

import "testing"

func TestUndoPutsBackTheLastFirst(t *testing.T) {
	l := &Log{}
	a, b := [2]int{1, 2}, 3
	Keep(l, &a)
	a[1] = 9
	Keep(l, &b)
	b = 4
	Keep(l, &b)
	b = 5
	l.Then(func() { b += 10 }) // while it is 5: before what was written earlier is put back
	Keep(l, &a[0])
	a[0] = 7
	l.Undo()
	if a != [2]int{1, 2} || b != 3 {
		t.Fatalf("%v %d", a, b)
	}
	b = 6
	l.Undo()
	if b != 6 {
		t.Fatal("what was put back once is put back again")
	}
}

func TestANilLogKeepsNothing(t *testing.T) {
	x := 1
	if n := testing.AllocsPerRun(100, func() { Keep(nil, &x); (*Log)(nil).Then(nil) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
