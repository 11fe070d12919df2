package clustertest

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Rules is so many bytes that look like a policy of many rules, no two of them alike: about 100 bytes each.
func Rules(bytes int) string {
	dice := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for i := 0; b.Len() < bytes; i++ {
		fmt.Fprintf(&b, "[[tenant.rule]]\nname = \"rule-%d\"\naction = \"allow\"\nto = \"198.%d.%d.%d/32\"\nproto = \"tcp\"\nports = \"%d\"\n", i, 18+dice.IntN(2), dice.IntN(256), dice.IntN(256), 1+dice.IntN(65535))
	}
	return b.String()[:bytes]
}
