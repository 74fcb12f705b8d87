package docker

import (
	"archive/tar"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"

	"golang.org/x/sync/errgroup"

	"orlop/id"
)

const imageName = "orlop-agent"

// A BinaryError says that there is no program to run in a helper on this
// engine, and which file would be one.
type BinaryError struct {
	Engine string // what the engine runs: linux/arm64
	Want   string // the file to put there
	Err    error  // what is wrong with what is there
}

// Error implements error.
func (e *BinaryError) Error() string {
	return fmt.Sprintf("the engine runs %s and needs a static binary of orlop for it: put it at %s: %v", e.Engine, e.Want, e.Err)
}

// Hint says how to get one.
func (e *BinaryError) Hint() string {
	goos, arch, _ := strings.Cut(e.Engine, "/")
	return fmt.Sprintf("where the source of orlop is: CGO_ENABLED=0 GOOS=%s GOARCH=%s go build -o %q ./cmd/orlop", goos, arch, e.Want)
}

// Unwrap returns what is wrong with what is there.
func (e *BinaryError) Unwrap() error { return e.Err }

// binary finds the program for the helper: the one asked for, else this one if
// the engine can run it, else orlop-linux-ARCH beside it.
func (e *Engine) binary(asked string) (string, error) {
	if asked != "" {
		return asked, e.runnable(asked, asked)
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	if runtime.GOOS == "linux" && e.runnable("/proc/self/exe", self) == nil {
		// Not self: that may have been replaced by an upgrade since.
		return "/proc/self/exe", nil
	}
	beside := filepath.Join(filepath.Dir(self), "orlop-linux-"+e.info.Arch)
	return beside, e.runnable(beside, beside)
}

// elfMachines are what Go's architectures are called in a binary.
var elfMachines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "386": elf.EM_386, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM,
	"riscv64": elf.EM_RISCV, "ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "loong64": elf.EM_LOONGARCH,
}

// runnable reports why path would not run in an empty image on the engine.
func (e *Engine) runnable(path, want string) error {
	refuse := func(err error) error {
		return &BinaryError{Engine: e.info.OS + "/" + e.info.Arch, Want: want, Err: err}
	}
	if e.info.OS != "linux" {
		return fmt.Errorf("the engine runs %s containers; only linux ones are supported", e.info.OS)
	}
	f, err := elf.Open(path)
	if err != nil {
		return refuse(err)
	}
	defer f.Close()
	if m, ok := elfMachines[e.info.Arch]; ok && f.Machine != m {
		return refuse(fmt.Errorf("it is for another machine (%v)", f.Machine))
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return refuse(errors.New("it is linked dynamically; build it with CGO_ENABLED=0"))
		}
	}
	return nil
}

// helperImage returns the ID of the image that holds the binary at path, which
// it imports if the engine does not have it.
func (e *Engine) helperImage(ctx context.Context, path string) (string, error) {
	e.image.Lock()
	defer e.image.Unlock()
	if img, ok := e.image.byBinary[path]; ok {
		return img, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := id.NewHash()
	size, err := io.Copy(h, f)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	sum := h.Sum()
	version := fmt.Sprintf("%x", sum[:])

	ours, err := e.agentImages(ctx)
	if err != nil {
		return "", err
	}
	for _, i := range ours {
		if i.Labels[labelAgent] == version {
			e.image.byBinary[path] = i.ID
			return i.ID, nil
		}
	}
	img, err := ask(ctx, e, "import the helper image", func(ctx context.Context) (string, error) {
		return e.importImage(ctx, io.NewSectionReader(f, 0, size), version)
	})
	if err != nil {
		return "", err
	}
	e.log.Debug("helper image imported", "image", img, "bytes", size)
	e.image.byBinary[path] = img
	e.dropImages(ctx, ours)
	return img, nil
}

// forgetImage is called when the engine turns out not to have it any more.
func (e *Engine) forgetImage(path string) {
	e.image.Lock()
	defer e.image.Unlock()
	delete(e.image.byBinary, path)
}

func (e *Engine) agentImages(ctx context.Context) ([]image.Summary, error) {
	return ask(ctx, e, "list the helper images", func(ctx context.Context) ([]image.Summary, error) {
		return e.cli.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("label", labelAgent))})
	})
}

// importImage makes an image of one file, /orlop, and returns its ID.
func (e *Engine) importImage(ctx context.Context, binary *io.SectionReader, version string) (string, error) {
	// As a stream: the binary would be the largest thing in memory.
	layer, in := io.Pipe()
	var made errgroup.Group
	made.Go(func() error {
		err := writeLayer(in, binary)
		_ = in.CloseWithError(err)
		return err
	})
	defer func() {
		_ = layer.Close()
		_ = made.Wait()
	}()
	body, err := e.cli.ImageImport(ctx, image.ImportSource{Source: layer, SourceName: "-"}, imageName+":"+version[:12], image.ImportOptions{
		Changes:  []string{"LABEL " + labelAgent + "=" + version, `ENTRYPOINT ["/orlop"]`},
		Platform: "linux/" + e.info.Arch,
	})
	if err != nil {
		return "", err
	}
	defer body.Close()
	// The answer is 200 before the work is done; how it went is in the stream.
	var img string
	for d := json.NewDecoder(body); ; {
		var line struct{ Status, Error string }
		if err := d.Decode(&line); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", err
		}
		if line.Error != "" {
			return "", errors.New(line.Error)
		}
		img = line.Status
	}
	if img == "" {
		return "", errors.New("the engine named no image")
	}
	return img, nil
}

// dropImages removes the images of other versions of orlop. Those in use stay,
// and so do young ones: a neighbour may be about to start a helper of his.
func (e *Engine) dropImages(ctx context.Context, old []image.Summary) {
	for _, i := range old {
		if time.Since(time.Unix(i.Created, 0)) < time.Hour {
			continue
		}
		_, err := ask(ctx, e, "remove helper image "+i.ID, func(ctx context.Context) ([]image.DeleteResponse, error) {
			return e.cli.ImageRemove(ctx, i.ID, image.RemoveOptions{PruneChildren: true})
		})
		if err != nil {
			e.log.Debug("an old helper image stays", "err", err)
		}
	}
}

// writeLayer writes the one layer of the image.
func writeLayer(out io.Writer, binary *io.SectionReader) error {
	w := tar.NewWriter(out)
	// The mount points are there so that nothing needs to be made in a root
	// that is read-only.
	for _, dir := range []string{"v/", "sock/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "orlop", Typeflag: tar.TypeReg, Mode: 0o555, Size: binary.Size()}); err != nil {
		return err
	}
	if _, err := io.Copy(w, binary); err != nil {
		return err
	}
	return w.Close()
}
