package zerocopy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// modules are what the guest's network cards need beyond the kernel image, in the order of loading.
var modules = []string{"failover", "net_failover", "virtio_net"}

// suite is where a kernel comes from whose virtio_net binds zero-copy: 6.12, of the release before, does not.
const suite = "trixie-backports"

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// unavailable says that the packages cannot be had here: neither a pass nor a failure of the gateway.
type unavailable struct{ error }

func (u unavailable) Unwrap() error { return u.error }

func tool(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, args[len(args)-1], err, lastLine(errs.String()))
	}
	return out.Bytes(), nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i := len(lines) - 1; i > 0; i-- {
		if strings.HasPrefix(lines[i], "E:") {
			return lines[i]
		}
	}
	return lines[len(lines)-1]
}

// emulator finds QEMU, and installs it where that is possible.
func emulator(ctx context.Context) (string, error) {
	const program = "qemu-system-x86_64"
	if p, err := exec.LookPath(program); err == nil {
		return p, nil
	}
	if os.Geteuid() != 0 {
		return "", unavailable{fmt.Errorf("there is no %s: apt-get install --no-install-recommends qemu-system-x86, or run this as root", program)}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	install := func() error {
		_, err := tool(ctx, "/", "apt-get", "install", "-y", "-q", "--no-install-recommends", "qemu-system-x86")
		return err
	}
	if err := install(); err != nil { // the lists may be old or absent
		if _, uerr := tool(ctx, "/", "apt-get", "-q", "update"); uerr != nil {
			return "", unavailable{fmt.Errorf("install an emulator: %w", errors.Join(err, uerr))}
		}
		if err := install(); err != nil {
			return "", unavailable{fmt.Errorf("install an emulator: %w", err)}
		}
	}
	p, err := exec.LookPath(program)
	if err != nil {
		return "", unavailable{err}
	}
	return p, nil
}

// kernelFiles lists what kernel leaves in its directory.
func kernelFiles(dir string) []string {
	out := []string{filepath.Join(dir, "vmlinuz")}
	for _, m := range modules {
		out = append(out, filepath.Join(dir, m+".ko"))
	}
	return out
}

func complete(dir string) bool {
	for _, f := range kernelFiles(dir) {
		if st, err := os.Stat(f); err != nil || st.Size() == 0 {
			return false
		}
	}
	return true
}

// kernel returns a directory with the kernel image and the modules. What was fetched once is used again. apt works on a state of its
// own below cache, so neither the machine's sources nor its lists are touched, and root is not needed.
func kernel(ctx context.Context, cache string) (string, error) {
	dir := filepath.Join(cache, "kernel")
	if complete(dir) {
		return dir, nil
	}
	if _, err := os.Stat(keyring); err != nil {
		return "", unavailable{fmt.Errorf("fetch a kernel: no Debian archive keyring (%s): install debian-archive-keyring", keyring)}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := fetchKernel(ctx, work); err != nil {
		return "", unavailable{fmt.Errorf("fetch a kernel from %s: %w", suite, err)}
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.Rename(filepath.Join(work, "kernel"), dir) // whole or not at all
}

func fetchKernel(ctx context.Context, work string) error {
	for _, d := range []string{"lists/partial", "archives/partial", "debs", "tree", "kernel", "empty"} {
		if err := os.MkdirAll(filepath.Join(work, d), 0o755); err != nil {
			return err
		}
	}
	source := fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nArchitectures: amd64\nSigned-By: %s\n", mirror(ctx), suite, keyring)
	if err := os.WriteFile(filepath.Join(work, "debian.sources"), []byte(source), 0o644); err != nil {
		return err
	}
	at := func(s string) string { return filepath.Join(work, s) }
	opts := []string{"-q", "-o", "APT::Architecture=amd64", "-o", "Dir::State::Lists=" + at("lists"), "-o", "Dir::Cache=" + work, "-o", "Dir::Cache::Archives=" + at("archives"),
		"-o", "Dir::Etc::SourceList=" + at("debian.sources"), "-o", "Dir::Etc::SourceParts=" + at("empty"),
		"-o", "Dir::Etc::Preferences=/dev/null", "-o", "Dir::Etc::PreferencesParts=" + at("empty"), "-o", "APT::Sandbox::User=root",
		"-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20", "-o", "Dir::State::status=/dev/null"}
	apt := func(program string, args ...string) ([]byte, error) {
		return tool(ctx, at("debs"), program, append(append([]string(nil), opts...), args...)...)
	}
	if _, err := apt("apt-get", "-o", "APT::Update::Error-Mode=any", "update"); err != nil {
		return err
	}
	meta, err := apt("apt-cache", "show", "linux-image-cloud-amd64")
	if err != nil {
		return err
	}
	version, err := kernelVersion(meta)
	if err != nil {
		return err
	}
	if _, err := apt("apt-get", "download", "linux-binary-"+version, "linux-modules-"+version); err != nil {
		return err
	}
	debs, err := filepath.Glob(at("debs/*.deb"))
	if err != nil {
		return err
	}
	for _, d := range debs {
		if _, err := tool(ctx, work, "dpkg-deb", "-x", d, at("tree")); err != nil {
			return err
		}
	}
	return collect(ctx, at("tree"), at("kernel"))
}

// kernelVersion reads the version that the metapackage stands for from its Depends.
func kernelVersion(meta []byte) (string, error) {
	m := regexp.MustCompile(`(?m)^Depends:.*\blinux-image-([0-9][^ ,|]*-cloud-amd64)\b`).FindSubmatch(meta)
	if m == nil {
		return "", errors.New("linux-image-cloud-amd64 depends on no kernel that could be told")
	}
	return string(m[1]), nil
}

// mirror is the Debian mirror of this machine; it may be the only one that can be reached.
func mirror(ctx context.Context) string {
	out, err := tool(ctx, "/", "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
	if err == nil {
		for line := range strings.Lines(string(out)) {
			if u := strings.TrimSuffix(strings.TrimSpace(line), "/"); strings.HasSuffix(u, "/debian") {
				return u
			}
		}
	}
	return "http://deb.debian.org/debian"
}

// collect takes the image and the modules, unpacked, from an unpacked package tree.
func collect(ctx context.Context, tree, into string) error {
	return filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name := d.Name()
		if name == "vmlinuz" || strings.HasPrefix(name, "vmlinuz-") {
			return os.Rename(path, filepath.Join(into, "vmlinuz"))
		}
		for _, m := range modules {
			switch name {
			case m + ".ko":
				return os.Rename(path, filepath.Join(into, m+".ko"))
			case m + ".ko.xz":
				b, err := tool(ctx, "/", "xz", "-dc", path)
				if err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(into, m+".ko"), b, 0o644)
			}
		}
		return nil
	})
}
