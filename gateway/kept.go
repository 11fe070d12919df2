package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// writeKept replaces a file in one step that survives a power loss, or leaves the old one.
func writeKept(name, magic string, what any) error {
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	data := slices.Concat([]byte(magic), []byte(hex.EncodeToString(sum[:])), []byte{'\n'}, body, []byte{'\n'})
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		_ = os.Remove(name + ".new")
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// readKept reads what writeKept has written.
func readKept(name, magic string, what any) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	head, body, ok := bytes.Cut(data, []byte{'\n'})
	sum, found := strings.CutPrefix(string(head), magic)
	body = bytes.TrimSuffix(body, []byte{'\n'})
	if want := sha256.Sum256(body); !ok || !found || sum != hex.EncodeToString(want[:]) {
		return errors.New("is damaged: its digest does not match")
	}
	if err := json.Unmarshal(body, what); err != nil {
		return fmt.Errorf("is not read by this build: %w", err)
	}
	return nil
}
