package netlab

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestAProcessThatNobodyHasWaitedForIsDead(t *testing.T) {
	if dead(os.Getpid()) {
		t.Error("this process is dead")
	}
	c := exec.Command("sleep", "0.05")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pid := c.Process.Pid
	if dead(pid) {
		t.Error("a process that has just begun is dead")
	}
	for deadline := time.Now().Add(5 * time.Second); !dead(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a process that has ended and was not waited for counts as alive")
		}
	}
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if !dead(pid) {
		t.Error("a process that is gone counts as alive")
	}
}
