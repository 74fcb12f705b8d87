package docker

import (
	"bytes"
	_ "embed"
	"encoding/json"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
)

// The labels of a helper and of its image. labelMounted marks a volume that the
// engine made because a helper asked for one that was not there.
const (
	labelHelper  = "orlop.helper"
	labelHost    = "orlop.host"
	labelRun     = "orlop.run"
	labelMounted = "orlop.mounted"
	labelAgent   = "orlop.agent"
)

const (
	socketTarget = "/sock"
	helperPids   = 128       // threads of one Go program; no process is started
	helperMemory = 256 << 20 // the agent's buffers and slack; page cache is reclaimed, so a limit costs no speed
)

// profile is Docker's default list of system calls (github.com/moby/profiles
// v0.2.3), its map of architectures kept, without the rules that come with a
// capability and without open_by_handle_at, name_to_handle_at, mount, umount,
// ptrace, bpf, io_uring_*, process_vm_*, kcmp and socketcall; of socket only
// AF_UNIX is left. socketcall, the 32-bit door to the same calls, is refused by a
// rule of its own: leaving it out lets libseccomp open it along with socket.
//
// The sub-architectures stay although nothing of ours uses them: without them a
// 32-bit call kills one thread instead of failing, and a container whose main
// thread is a zombie runs for ever.
//
//go:embed seccomp.json
var profile []byte

// sandbox is the container that the agent runs in: everything is taken away
// that it does not need. Each line is shown to hold by a test, see
// docs/sandbox.md.
func sandbox(c HelperConfig, e *Engine, image, socket string) (*container.Config, *container.HostConfig) {
	security := []string{"no-new-privileges:true"}
	if e.info.Seccomp {
		var compact bytes.Buffer
		if err := json.Compact(&compact, profile); err != nil {
			panic(err) // it is part of the program
		}
		security = append(security, "seccomp="+compact.String())
	}

	// Not DAC_READ_SEARCH: it opens the host's root by file handle.
	caps := []string{"DAC_OVERRIDE"}
	if c.Mode == Restore {
		caps = append(caps, "CHOWN", "FOWNER", "FSETID", "SETFCAP")
		if c.Devices {
			caps = append(caps, "MKNOD")
		}
	}

	var mounts []mount.Mount
	for i, name := range c.Volumes {
		mounts = append(mounts, mount.Mount{
			Type: mount.TypeVolume, Source: name, Target: root(i), ReadOnly: c.Mode == Backup,
			VolumeOptions: &mount.VolumeOptions{
				NoCopy: true,
				// Only a volume that this mount creates gets them.
				Labels: map[string]string{labelMounted: c.Run.String()},
			},
		})
	}
	if socket != "" {
		// A mount of type bind fails where the directory is missing; one in
		// Binds would create it, on a remote host too. Read-only does not
		// keep a socket in it from being connected to.
		mounts = append(mounts, mount.Mount{
			Type: mount.TypeBind, Source: socket, Target: socketTarget, ReadOnly: true,
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
		})
	}

	pids := int64(helperPids)
	config := &container.Config{
		Image: image, User: "0:0", Entrypoint: []string{"/orlop"}, Cmd: []string{"agent"},
		NetworkDisabled: true,
		AttachStdin:     true, OpenStdin: true, StdinOnce: true, AttachStdout: true, AttachStderr: true,
		Labels: map[string]string{labelHelper: "1", labelHost: e.Owner, labelRun: c.Run.String()},
	}
	host := &container.HostConfig{
		NetworkMode:    "none",
		ReadonlyRootfs: true,
		CapDrop:        []string{"ALL"},
		CapAdd:         caps,
		SecurityOpt:    security,
		// The default driver would write the whole stream, in clear, to
		// the host's disk.
		LogConfig:  container.LogConfig{Type: "none"},
		AutoRemove: true,
		Mounts:     mounts,
		Resources:  container.Resources{PidsLimit: &pids, Memory: helperMemory, MemorySwap: helperMemory},
	}
	return config, host
}
