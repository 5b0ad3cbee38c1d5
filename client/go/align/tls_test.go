package align_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"github.com/alignserve/alignserve/client/go/align"
)

// certificate is a certificate for 127.0.0.1, its own authority, in PEM files.
type certificate struct{ file, keyFile string }

func newCertificate(t *testing.T) certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test"},
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	content, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyContent, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	made := certificate{filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")}
	writePEM(t, made.file, "CERTIFICATE", content)
	writePEM(t, made.keyFile, "PRIVATE KEY", keyContent)
	return made
}

func writePEM(t *testing.T, path, kind string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c certificate) pool(t *testing.T) *x509.CertPool {
	t.Helper()
	content, err := os.ReadFile(c.file)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(content)
	return pool
}

// serveTLS starts a server that demands the certificate of a client, if there is one.
func serveTLS(t *testing.T, own certificate, client *certificate) *server {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(own.file, own.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	configuration := &tls.Config{Certificates: []tls.Certificate{pair}}
	if client != nil {
		configuration.ClientCAs, configuration.ClientAuth = client.pool(t), tls.RequireAndVerifyClientCert
	}
	return serve(t, grpc.Creds(credentials.NewTLS(configuration)))
}

func embedOverTLS(t *testing.T, s *server, options ...align.Option) error {
	t.Helper()
	client, err := align.New(s.target, append(options, align.WithoutRetries())...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	_, err = client.EmbedTexts(t.Context(), []string{"a"})
	return err
}

func TestAPrivateAuthorityIsTrustedWhenNamed(t *testing.T) {
	own := newCertificate(t)
	s := serveTLS(t, own, nil)

	if err := embedOverTLS(t, s, align.WithRootCA(own.file), align.WithAPIKey("as_key")); err != nil {
		t.Error(err)
	}
	if err := embedOverTLS(t, s); asError(t, err).Code != codes.Unavailable {
		t.Errorf("got %v from a server that is not trusted", err)
	}
}

func TestAClientShowsItsCertificate(t *testing.T) {
	own, clients := newCertificate(t), newCertificate(t)
	s := serveTLS(t, own, &clients)

	if err := embedOverTLS(t, s, align.WithRootCA(own.file), align.WithClientCertificate(clients.file, clients.keyFile)); err != nil {
		t.Error(err)
	}
	if err := embedOverTLS(t, s, align.WithRootCA(own.file)); asError(t, err).Code != codes.Unavailable {
		t.Errorf("got %v without a certificate", err)
	}
}

func TestConnectionsAreEncryptedUnlessPlaintextIsAskedFor(t *testing.T) {
	s := serve(t)

	if err := embedOverTLS(t, s); asError(t, err).Code != codes.Unavailable || s.calls() != 0 {
		t.Errorf("got %v after %d calls", err, s.calls())
	}
}

func TestFilesThatAreNoCertificatesFailAtOnce(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string][]align.Option{
		"no file":        {align.WithRootCA(empty + "?")},
		"no authority":   {align.WithRootCA(empty)},
		"no certificate": {align.WithClientCertificate(empty, empty)},
		"contradiction":  {align.WithPlaintext(), align.WithRootCA(empty)},
	} {
		if _, err := align.New("127.0.0.1:1", options...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
