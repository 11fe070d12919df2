package portprep

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// step is one setting that was changed.
type step struct {
	What string `json:"what"`
	Was  value  `json:"was"`
	Now  value  `json:"now"`

	Under *value `json:"under,omitempty"` // as it reads while the program is on the device, where that is another
}

// record is what a device's file holds. Identity says which device of which namespace and boot it is about.
type record struct {
	Device   string `json:"device"`
	Identity string `json:"identity"`
	Steps    []step `json:"steps"` // in the order of the first change; undone from the end
}

// note remembers a change. What stood there first stays.
func (r *record) note(s step) {
	for i := range r.Steps {
		if r.Steps[i].What == s.What {
			r.Steps[i].Now = s.Now
			return
		}
	}
	r.Steps = append(r.Steps, s)
}

// clone is a copy whose list is its own.
func (r *record) clone() *record {
	c := *r
	c.Steps = append([]step(nil), r.Steps...)
	return &c
}

// identity is equal only while the device has kept its settings: boot, network namespace, index.
func identity(ifindex int) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	ns, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s %d", strings.TrimSpace(string(boot)), ns, ifindex), nil
}

func file(dir, device string) string { return filepath.Join(dir, device+".json") }

// load reads a device's file. One of another identity, or none, is an empty record; a torn one is an error.
func load(dir, device, id string) (*record, error) {
	r := &record{Device: device, Identity: id}
	name := file(dir, device)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	var kept record
	if err := json.Unmarshal(text, &kept); err != nil {
		return r, fmt.Errorf("%s: %w", name, err)
	}
	if kept.Device == device && kept.Identity == id {
		return &kept, nil
	}
	return r, nil
}

// save writes a device's file, or removes it when there is nothing to put back. A kill or a power loss leaves the old one or the new one.
func (r *record) save(dir string) error {
	name := file(dir, r.Device)
	if len(r.Steps) == 0 {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), name)
}
