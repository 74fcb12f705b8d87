package docker

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/docker/client"
	"github.com/docker/go-connections/tlsconfig"
)

// An endpoint is where an engine is and how to reach it.
type endpoint struct {
	host       string // unix:///path, tcp://host:port, ssh://user@host
	tls        *tlsconfig.Options
	apiVersion string // insisted on; "" is agreed with the engine
	context    string // that named it, if one did
}

// String names the endpoint for an error.
func (at endpoint) String() string {
	if at.context != "" {
		return fmt.Sprintf("%s (context %q)", at.host, at.context)
	}
	return at.host
}

// findEndpoint follows the docker command's rules, DOCKER_HOST over
// DOCKER_CONTEXT over the configuration file's current context.
//
// Contexts are read here, not by docker/cli's own packages: those pull in a
// hundred others for what is one small JSON file each.
func findEndpoint(env func(string) string) (endpoint, error) {
	dir := env("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err == nil {
			dir = filepath.Join(home, ".docker")
		}
	}
	at := endpoint{host: env("DOCKER_HOST"), apiVersion: env("DOCKER_API_VERSION")}
	if at.host == "" {
		name := env("DOCKER_CONTEXT")
		if name == "" {
			var err error
			if name, err = currentContext(dir); err != nil {
				return at, err
			}
		}
		if name != "" && name != "default" {
			c, err := readContext(dir, name)
			c.apiVersion = at.apiVersion
			return c, err
		}
		at.host = client.DefaultDockerHost
	}
	if !strings.Contains(at.host, "://") {
		return at, fmt.Errorf("DOCKER_HOST is %q, which has no scheme: unix://, tcp:// or ssh://", at.host)
	}
	verify, certs := env("DOCKER_TLS_VERIFY") != "", env("DOCKER_CERT_PATH")
	if strings.HasPrefix(at.host, "tcp://") && (verify || certs != "" || env("DOCKER_TLS") != "") {
		if certs == "" {
			certs = dir
		}
		at.tls = &tlsconfig.Options{
			CAFile: filepath.Join(certs, "ca.pem"), CertFile: filepath.Join(certs, "cert.pem"),
			KeyFile: filepath.Join(certs, "key.pem"), InsecureSkipVerify: !verify,
			ExclusiveRootPools: true,
		}
	}
	return at, nil
}

func currentContext(dir string) (string, error) {
	name := filepath.Join(dir, "config.json")
	p, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	var config struct {
		CurrentContext string `json:"currentContext"`
	}
	if err == nil {
		err = json.Unmarshal(p, &config)
	}
	if err != nil {
		return "", fmt.Errorf("read the current context from %s: %w", name, err)
	}
	return config.CurrentContext, nil
}

// readContext reads what `docker context create` wrote: the context's directory
// is named by the hash of its name, and its TLS files lie in a tree beside.
func readContext(dir, name string) (endpoint, error) {
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
	p, err := os.ReadFile(filepath.Join(dir, "contexts", "meta", digest, "meta.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return endpoint{}, fmt.Errorf("there is no docker context %q in %s", name, dir)
	}
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool
		}
	}
	if err == nil {
		err = json.Unmarshal(p, &meta)
	}
	if err != nil {
		return endpoint{}, fmt.Errorf("read docker context %q: %w", name, err)
	}
	d, ok := meta.Endpoints["docker"]
	if !ok || d.Host == "" {
		return endpoint{}, fmt.Errorf("docker context %q names no docker engine", name)
	}
	at := endpoint{host: d.Host, context: name}
	certs := filepath.Join(dir, "contexts", "tls", digest, "docker")
	file := func(name string) string {
		if _, err := os.Stat(filepath.Join(certs, name)); err != nil {
			return ""
		}
		return filepath.Join(certs, name)
	}
	tls := &tlsconfig.Options{
		CAFile: file("ca.pem"), CertFile: file("cert.pem"), KeyFile: file("key.pem"),
		InsecureSkipVerify: d.SkipTLSVerify,
	}
	tls.ExclusiveRootPools = tls.CAFile != ""
	if strings.HasPrefix(d.Host, "tcp://") && (tls.CAFile != "" || tls.CertFile != "" || d.SkipTLSVerify) {
		at.tls = tls
	}
	return at, nil
}
