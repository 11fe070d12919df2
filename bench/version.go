package bench

import (
	"cmp"
	"runtime/debug"
)

// linked is the version that the linker was told, which stands in results where the build has no record of its own (go build -buildvcs=false). Command writes it.
var linked string

// version is what the build knows of itself.
func version() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return cmp.Or(linked, "unknown")
	}
	if rev, changed := revision(b); rev != "" {
		return rev[:min(12, len(rev))] + changed
	}
	return cmp.Or(linked, b.Main.Version)
}

// commit is what the program was built of; "" = nobody knows.
func commit() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return linked
	}
	rev, changed := revision(b)
	return cmp.Or(rev+changed, linked)
}

const changedTree = "-changed"

// revision is the commit by the build's own record, and a word where what was built is not that commit.
func revision(b *debug.BuildInfo) (rev, changed string) {
	for _, s := range b.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = changedTree
		}
	}
	return rev, changed
}
