//go:build engine

package docker

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"orlop/agent"
)

// The engine of the tests is a local one. Here it is reached as a remote one
// is: through a proxy that speaks TLS, and through an SSH server.

// sameEngine opens the engine the environment leads to, which must be the one
// whose ID is want, and starts a helper on it.
func sameEngine(t *testing.T, want string) {
	t.Helper()
	e := engine(t)
	if got := e.Info(); got.ID != want || got.Local {
		t.Errorf("engine %q, local %v; want %q, remote", got.ID, got.Local, want)
	}
	name, _ := newVolume(t, e)
	h := start(t, e, HelperConfig{Volumes: []string{name}})
	if got := h.Client.Transport(); got != agent.TransportStdio {
		t.Errorf("transport %q, want stdio", got)
	}
	if at, err := h.Client.Look(t.Context(), h.Root(0)); err != nil || !at.Empty {
		t.Errorf("%+v, %v", at, err)
	}
	if err := h.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAnEngineIsReachedByTCPWithTLSAndByAContext(t *testing.T) {
	local := engine(t)
	want := local.Info().ID
	certs := newAuthority(t)
	addr := tlsProxy(t, local.Info().Host, certs)

	t.Run("by DOCKER_HOST", func(t *testing.T) {
		t.Setenv("DOCKER_HOST", "tcp://"+addr)
		t.Setenv("DOCKER_TLS_VERIFY", "1")
		t.Setenv("DOCKER_CERT_PATH", certs.dir)
		sameEngine(t, want)
	})
	t.Run("by a context that the docker command made", func(t *testing.T) {
		config := t.TempDir()
		t.Setenv("DOCKER_CONFIG", config)
		t.Setenv("DOCKER_HOST", "")
		docker(t, "context", "create", "far", "--docker", fmt.Sprintf("host=tcp://%s,ca=%[2]s/ca.pem,cert=%[2]s/cert.pem,key=%[2]s/key.pem", addr, certs.dir))
		docker(t, "context", "use", "far")
		sameEngine(t, want)
	})
	t.Run("not without a certificate of our own", func(t *testing.T) {
		stranger := newAuthority(t)
		if err := os.Rename(filepath.Join(certs.dir, "ca.pem"), filepath.Join(stranger.dir, "ca.pem")); err != nil {
			t.Fatal(err)
		}
		t.Setenv("DOCKER_HOST", "tcp://"+addr)
		t.Setenv("DOCKER_TLS_VERIFY", "1")
		t.Setenv("DOCKER_CERT_PATH", stranger.dir)
		if _, err := Open(t.Context(), slog.New(slog.DiscardHandler)); err == nil {
			t.Error("the proxy took a stranger's certificate")
		}
	})
	t.Run("not when the engine is somebody else", func(t *testing.T) {
		t.Setenv("DOCKER_HOST", "tcp://"+addr)
		t.Setenv("DOCKER_TLS_VERIFY", "1")
		t.Setenv("DOCKER_CERT_PATH", newAuthority(t).dir)
		if _, err := Open(t.Context(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("Open: %v; want that the certificate is not trusted", err)
		}
	})
}

func docker(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("docker", args...).CombinedOutput(); err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// An authority signs a server's certificate and a client's, which lie in dir
// under docker's names for them.
type authority struct {
	dir    string
	pool   *x509.CertPool
	server tls.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	a := &authority{dir: t.TempDir(), pool: x509.NewCertPool()}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		check(err)
		return k
	}
	caKey := key()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	sign := func(c *x509.Certificate, k *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &k.PublicKey, caKey)
		check(err)
		return der
	}
	save := func(name, kind string, der []byte) {
		put(t, filepath.Join(a.dir, name), string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	}
	caDER := sign(ca, caKey)
	save("ca.pem", "CERTIFICATE", caDER)
	parsed, err := x509.ParseCertificate(caDER)
	check(err)
	a.pool.AddCert(parsed)
	for n, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		k := key()
		der := sign(&x509.Certificate{
			SerialNumber: big.NewInt(int64(2 + n)), Subject: pkix.Name{CommonName: "test"},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		}, k)
		if usage == x509.ExtKeyUsageServerAuth {
			a.server = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
			continue
		}
		keyDER, err := x509.MarshalECPrivateKey(k)
		check(err)
		save("cert.pem", "CERTIFICATE", der)
		save("key.pem", "EC PRIVATE KEY", keyDER)
	}
	return a
}

// tlsProxy carries connections of the authority's clients to the engine's
// socket, as an engine with --tlsverify takes them, and returns its address.
func tlsProxy(t *testing.T, engine string, a *authority) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{a.server}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { _ = l.Close() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				e, err := net.Dial("unix", strings.TrimPrefix(engine, "unix://"))
				if err != nil {
					return
				}
				defer e.Close()
				var both sync.WaitGroup
				both.Go(func() {
					_, _ = io.Copy(e, c)
					_ = e.(*net.UnixConn).CloseWrite()
				})
				_, _ = io.Copy(c, e)
				_ = c.(*tls.Conn).CloseWrite()
				_ = c.SetReadDeadline(time.Now().Add(time.Second))
				both.Wait()
			})
		}
	})
	return l.Addr().String()
}

func TestAnEngineIsReachedBySSH(t *testing.T) {
	local := engine(t)
	host := sshServer(t, local.Info().Host)
	t.Setenv("DOCKER_HOST", "ssh://somebody@"+host)
	sameEngine(t, local.Info().ID)
}

// sshServer lets the client's key in and runs what it asks for, which must be
// docker's own word for it, with the engine's address in the environment. The
// client is the machine's ssh command, told by a wrapper to use our keys only.
func sshServer(t *testing.T, engine string) string {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	newKey := func(name string) ssh.Signer {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		check(err)
		block, err := ssh.MarshalPrivateKey(key, "")
		check(err)
		put(t, filepath.Join(dir, name), string(pem.EncodeToMemory(block)))
		s, err := ssh.NewSignerFromKey(key)
		check(err)
		return s
	}
	hostKey, clientKey := newKey("host"), newKey("client")
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(clientKey.PublicKey().Marshal()) {
			return nil, fmt.Errorf("not that key")
		}
		return nil, nil
	}}
	config.AddHostKey(hostKey)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	host, port, _ := net.SplitHostPort(l.Addr().String())

	put(t, filepath.Join(dir, "known"), fmt.Sprintf("[%s]:%s %s", host, port, ssh.MarshalAuthorizedKey(hostKey.PublicKey())))
	real, err := exec.LookPath("ssh")
	check(err)
	put(t, filepath.Join(dir, "bin/ssh"), fmt.Sprintf(`#!/bin/sh
exec %s -F none -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityFile=%[2]s/client -o UserKnownHostsFile=%[2]s/known "$@"
`, real, dir))
	check(os.Chmod(filepath.Join(dir, "bin/ssh"), 0o700))
	t.Setenv("PATH", filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))

	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { cancel(); _ = l.Close() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				serveSSH(ctx, c, config, engine)
			})
		}
	})
	return l.Addr().String()
}

// serveSSH serves one connection: sessions that each run one command.
func serveSSH(ctx context.Context, c net.Conn, config *ssh.ServerConfig, engine string) {
	_, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { ssh.DiscardRequests(requests) })
	for ch := range channels {
		session, requests, err := ch.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			defer session.Close()
			for r := range requests {
				var command struct{ Line string }
				if r.Type != "exec" || ssh.Unmarshal(r.Payload, &command) != nil || command.Line != "docker system dial-stdio" {
					_ = r.Reply(false, nil)
					continue
				}
				_ = r.Reply(true, nil)
				run := exec.CommandContext(ctx, "docker", "system", "dial-stdio")
				run.Env = append(os.Environ(), "DOCKER_HOST="+engine)
				run.Stdout = session
				in, err := run.StdinPipe()
				if err != nil || run.Start() != nil {
					return
				}
				go func() {
					_, _ = io.Copy(in, session)
					_ = in.Close()
				}()
				code := struct{ Status uint32 }{}
				if run.Wait() != nil {
					code.Status = 1
				}
				_, _ = session.SendRequest("exit-status", false, ssh.Marshal(code))
				return
			}
		})
	}
}
