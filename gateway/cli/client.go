package cli

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"demarc/cluster/transport"
)

// clientCmd makes the keys of somebody who asks a node over TCP. It is part of the cluster command, and works where the authority's key is.
func (a *app) clientCmd() *cobra.Command {
	var role, ca, out string
	var days int
	c := command("client NAME --role ROLE --ca DIR --out DIR", "make keys for somebody who asks nodes over TCP",
		"Make a key and a certificate for a person or program that asks the cluster's nodes over TCP, with --server and --keys or with any HTTPS client.\n"+
			"The certificate says who it is and what they may do: operator (everything), read-only (look at the whole node, but not into packets), or\n"+
			"tenant=NAME (status, sessions, drops and rules of that tenant alone). A node takes it because the authority in --ca has signed it; there is\n"+
			"no list of names, so it is good until it ends. Give the directory to its owner and nobody else.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			who := transport.Client{Name: args[0]}
			var err error
			switch {
			case role == "":
				return usageError{errors.New("--role is missing: operator, read-only or tenant=NAME")}
			case ca == "":
				return usageError{errors.New("--ca is missing: name the directory of the authority, with ca.crt and ca.key")}
			case out == "":
				return usageError{errors.New("--out is missing: name the directory to write the keys to")}
			case days < 1 || days > 3650:
				return usageError{fmt.Errorf("--days %d: want 1 to 3650", days)}
			}
			if who.Role, who.Tenant, err = transport.ParseRole(role); err != nil {
				return usageError{err}
			}
			authority, err := transport.OpenAuthority(ca)
			if err != nil {
				return err
			}
			until, err := authority.IssueClient(out, who, time.Duration(days)*24*time.Hour, time.Now())
			if err != nil {
				return err
			}
			made := madeClient{Name: who.Name, Role: string(who.Role), Tenant: who.Tenant, Until: until, Files: []string{
				filepath.Join(out, transport.AuthorityCert), filepath.Join(out, transport.ClientCert), filepath.Join(out, transport.ClientKey)}}
			return show(a, cmd, &made, func(w io.Writer, m *madeClient) {
				fmt.Fprintf(w, "%s, valid until %s\n", clean(who.String()), stamp(m.Until, 0))
				for _, f := range m.Files {
					fmt.Fprintf(w, "  %s\n", clean(f))
				}
				fmt.Fprintf(w, "use: demarc --server https://ADDRESS:PORT --keys %s status\n", clean(out))
			})
		})
	c.Flags().StringVar(&role, "role", "", "operator, read-only or tenant=NAME")
	c.Flags().StringVar(&ca, "ca", "", "`directory` of the authority")
	c.Flags().StringVar(&out, "out", "", "`directory` to write to")
	c.Flags().IntVar(&days, "days", 365, "how long the certificate is good for")
	return a.data(c)
}

// madeClient is what cluster client --json prints.
type madeClient struct {
	Name   string    `json:"name"`
	Role   string    `json:"role"`
	Tenant string    `json:"tenant,omitempty"`
	Until  time.Time `json:"until"`
	Files  []string  `json:"files"`
}
