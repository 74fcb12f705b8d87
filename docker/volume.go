package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
)

// A Volume is a volume as the engine describes it.
type Volume struct {
	Name       string
	Driver     string
	Options    map[string]string // of the driver, verbatim
	Labels     map[string]string
	Scope      string // local or global
	Mountpoint string // on the engine's host; plugins may leave it empty
	CreatedAt  string // as the engine writes it; plugins may leave it at year 1
}

// The labels by which compose marks what it made.
const (
	composeProject = "com.docker.compose.project"
	composeVolume  = "com.docker.compose.volume"
	composeService = "com.docker.compose.service"
)

// Project returns the compose project that made the volume, or "".
func (v Volume) Project() string { return v.Labels[composeProject] }

// ComposeName returns what the volume is called in its project's compose file,
// or "".
func (v Volume) ComposeName() string { return v.Labels[composeVolume] }

// ErrNoVolume is what a [NoVolumeError] is.
var ErrNoVolume = errors.New("no such volume")

// A NoVolumeError says that the engine has no volume of that name. It satisfies
// errors.Is(err, [ErrNoVolume]).
type NoVolumeError struct {
	Name string
	Near []string // names that it may be a misspelling of, nearest first
}

// Error implements error.
func (e *NoVolumeError) Error() string {
	if len(e.Near) == 0 {
		return fmt.Sprintf("no volume %q", e.Name)
	}
	return fmt.Sprintf("no volume %q: did you mean %s?", e.Name, strings.ReplaceAll(quoted(e.Near), ", ", " or "))
}

// Is makes every NoVolumeError an ErrNoVolume.
func (e *NoVolumeError) Is(target error) bool { return target == ErrNoVolume }

// Volume finds a volume by its name, or by project/volume as compose labels it.
// Where there is none the error is a [NoVolumeError].
func (e *Engine) Volume(ctx context.Context, name string) (Volume, error) {
	// No volume's own name can hold a slash.
	if project, short, ok := strings.Cut(name, "/"); ok {
		return e.composeVolume(ctx, name, project, short)
	}
	v, err := e.inspect(ctx, name)
	if errors.Is(err, ErrNoVolume) {
		return Volume{}, e.noVolume(ctx, name)
	}
	return v, err
}

// inspect asks for exactly that name.
func (e *Engine) inspect(ctx context.Context, name string) (Volume, error) {
	// Asked without one, the engine answers with the list of all of them.
	if name == "" {
		return Volume{}, &NoVolumeError{}
	}
	v, err := ask(ctx, e, fmt.Sprintf("inspect volume %q", name), func(ctx context.Context) (volume.Volume, error) {
		return e.cli.VolumeInspect(ctx, name)
	})
	switch {
	case errdefs.IsNotFound(err):
		return Volume{}, &NoVolumeError{Name: name}
	case err != nil:
		return Volume{}, err
	}
	return fromAPI(&v), nil
}

func (e *Engine) composeVolume(ctx context.Context, name, project, short string) (Volume, error) {
	all, err := e.Volumes(ctx)
	if err != nil {
		return Volume{}, err
	}
	var found []Volume
	for _, v := range all {
		if v.Project() != project || v.ComposeName() != short {
			continue
		}
		if v.Name == project+"_"+short {
			return v, nil // as compose calls it; others are copies of it
		}
		found = append(found, v)
	}
	switch len(found) {
	case 0:
		return Volume{}, &NoVolumeError{Name: name, Near: near(name, all)}
	case 1:
		return found[0], nil
	}
	return Volume{}, fmt.Errorf("%q is both volume %q and volume %q", name, found[0].Name, found[1].Name)
}

func (e *Engine) noVolume(ctx context.Context, name string) error {
	all, err := e.Volumes(ctx)
	if err != nil {
		all = nil // the name is wrong either way; only the suggestions are lost
	}
	return &NoVolumeError{Name: name, Near: near(name, all)}
}

// Volumes lists the engine's volumes by name.
func (e *Engine) Volumes(ctx context.Context) ([]Volume, error) {
	list, err := ask(ctx, e, "list volumes", func(ctx context.Context) (volume.ListResponse, error) {
		return e.cli.VolumeList(ctx, volume.ListOptions{})
	})
	if err != nil {
		return nil, err
	}
	for _, w := range list.Warnings {
		e.log.Warn("the engine may have left out volumes", "warning", w)
	}
	all := make([]Volume, 0, len(list.Volumes))
	for _, v := range list.Volumes {
		all = append(all, fromAPI(v))
	}
	slices.SortFunc(all, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// CreateVolume makes a volume with want's name, driver, options and labels, and
// returns it as it then is. A name that is taken is an error satisfying
// errors.Is(err, [ErrVolumeExists]): an engine answers such a request with the
// volume that is there, whatever it holds.
func (e *Engine) CreateVolume(ctx context.Context, want Volume) (Volume, error) {
	switch _, err := e.inspect(ctx, want.Name); {
	case err == nil:
		return Volume{}, fmt.Errorf("create volume %q: %w", want.Name, ErrVolumeExists)
	case !errors.Is(err, ErrNoVolume):
		return Volume{}, err
	case want.Name == "":
		return Volume{}, errors.New("create volume: it has no name")
	}
	v, err := ask(ctx, e, fmt.Sprintf("create volume %q", want.Name), func(ctx context.Context) (volume.Volume, error) {
		return e.cli.VolumeCreate(ctx, volume.CreateOptions{
			Name: want.Name, Driver: want.Driver, DriverOpts: want.Options, Labels: want.Labels,
		})
	})
	if err != nil {
		return Volume{}, err
	}
	return fromAPI(&v), nil
}

// ErrVolumeExists is returned by [Engine.CreateVolume].
var ErrVolumeExists = errors.New("the volume exists")

// RemoveVolume removes a volume that no container uses.
func (e *Engine) RemoveVolume(ctx context.Context, name string) error {
	return tell(ctx, e, fmt.Sprintf("remove volume %q", name), func(ctx context.Context) error {
		return e.cli.VolumeRemove(ctx, name, false)
	})
}

func fromAPI(v *volume.Volume) Volume {
	return Volume{
		Name: v.Name, Driver: v.Driver, Options: v.Options, Labels: v.Labels,
		Scope: v.Scope, Mountpoint: v.Mountpoint, CreatedAt: v.CreatedAt,
	}
}

// A User is a container that has a volume, or part of it, mounted.
type User struct {
	ID, Name         string
	State            string // running, paused, exited, created, ...
	Project, Service string // of compose, or ""
	Writes           bool   // mounted for writing
}

// Users returns the containers that mount v, running or not, orlop's own
// helpers left out. A bind mount of the volume's directory, of what is in it or
// of a directory above it counts: the engine's own filter does not see those.
func (e *Engine) Users(ctx context.Context, v Volume) ([]User, error) {
	list, err := ask(ctx, e, fmt.Sprintf("list the containers that use volume %q", v.Name), func(ctx context.Context) ([]container.Summary, error) {
		return e.cli.ContainerList(ctx, container.ListOptions{All: true})
	})
	if err != nil {
		return nil, err
	}
	var users []User
	for _, c := range list {
		if c.Labels[labelHelper] != "" {
			continue
		}
		u := User{
			ID: c.ID, Name: c.ID, State: string(c.State),
			Project: c.Labels[composeProject], Service: c.Labels[composeService],
		}
		if len(c.Names) > 0 {
			u.Name = strings.TrimPrefix(c.Names[0], "/")
		}
		uses := false
		for _, m := range c.Mounts {
			if m.Name == v.Name || m.Name == "" && overlap(m.Source, v.Mountpoint) {
				uses = true
				u.Writes = u.Writes || m.RW // Mode says nothing: it may be "" or "z"
			}
		}
		if uses {
			users = append(users, u)
		}
	}
	slices.SortFunc(users, func(a, b User) int { return cmp.Compare(a.Name, b.Name) })
	return users, nil
}

// overlap reports whether one of two directories is or contains the other.
func overlap(a, b string) bool {
	if !path.IsAbs(a) || !path.IsAbs(b) {
		return false
	}
	a, b = strings.TrimSuffix(path.Clean(a), "/")+"/", strings.TrimSuffix(path.Clean(b), "/")+"/"
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
}

// near returns up to three names that name may be a misspelling of, nearest
// first: one edit and another for every three letters apart, or the same but for
// the compose project.
func near(name string, all []Volume) []string {
	type candidate struct {
		name string
		far  int
	}
	var cs []candidate
	for _, v := range all {
		spelled := []string{v.Name}
		if v.Project() != "" {
			spelled = append(spelled, v.Project()+"/"+v.ComposeName())
		}
		best := candidate{far: 2 + len(name)/3}
		for _, s := range spelled {
			if far := distance(strings.ToLower(name), strings.ToLower(s)); far < best.far {
				best = candidate{s, far}
			}
		}
		if best.name == "" && v.Project() != "" && strings.EqualFold(v.ComposeName(), name) {
			best.name = v.Name
		}
		if best.name != "" {
			cs = append(cs, best)
		}
	}
	slices.SortStableFunc(cs, func(a, b candidate) int { return cmp.Compare(a.far, b.far) })
	var names []string
	for _, c := range cs[:min(len(cs), 3)] {
		names = append(names, c.name)
	}
	return names
}

// distance is the least number of letters to insert, delete, replace or swap
// with their neighbour that turns a into b (Damerau and Levenshtein's, each
// letter edited once).
func distance(a, b string) int {
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := prev[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(prev[j]+1, row[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}
