package align

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const (
	priorityKey         = "alignserve-priority"
	maxResponseBytesKey = "alignserve-max-response-bytes"
)

// Priority decides which calls are served first.
type Priority string

const (
	// Interactive is for calls that a user is waiting for. It is the default.
	Interactive Priority = "interactive"
	// Bulk is for work that can wait, such as embedding an archive.
	Bulk Priority = "bulk"
)

// Option changes how [New] connects.
type Option func(*config)

type config struct {
	tls              *tls.Config
	rootCAFile       string
	certificateFile  string
	keyFile          string
	isPlaintext      bool
	hasHealthChecks  bool
	isWithoutRetries bool
	timeout          time.Duration
	keepaliveTime    time.Duration
	keepaliveTimeout time.Duration
	maxResponseBytes int
	metadata         metadata.MD
	dial             []grpc.DialOption
	closed           chan struct{}
	close            func()
}

func newConfig() *config {
	closed := make(chan struct{})
	return &config{
		closed:           closed,
		close:            sync.OnceFunc(func() { close(closed) }),
		timeout:          30 * time.Second,
		keepaliveTime:    time.Minute,
		keepaliveTimeout: 10 * time.Second,
		maxResponseBytes: 16 << 20,
		metadata:         metadata.MD{},
	}
}

// WithPlaintext turns TLS off. Keys and images can then be read in transit: use it
// on one machine, or where a mesh encrypts the traffic.
func WithPlaintext() Option { return func(c *config) { c.isPlaintext = true } }

// WithRootCA trusts only the certificate authorities in a PEM file.
func WithRootCA(path string) Option { return func(c *config) { c.rootCAFile = path } }

// WithClientCertificate sets the client certificate, for servers that require one.
// The PEM files are read for each connection, so they can be rotated.
func WithClientCertificate(certificatePath, keyPath string) Option {
	return func(c *config) { c.certificateFile, c.keyFile = certificatePath, keyPath }
}

// WithTLS sets the TLS configuration; the other TLS options change a copy of it.
func WithTLS(configuration *tls.Config) Option { return func(c *config) { c.tls = configuration } }

// WithAPIKey sends a key with every call, without the space around it: files end
// with a line break.
func WithAPIKey(key string) Option {
	return WithMetadata("authorization", "Bearer "+strings.TrimSpace(key))
}

// WithTimeout sets the deadline of unary calls whose context has none, over all
// attempts: 30 seconds by default, 0 for none. Streams use their context's only.
func WithTimeout(timeout time.Duration) Option { return func(c *config) { c.timeout = timeout } }

// WithPriority sets the priority of all calls.
func WithPriority(priority Priority) Option { return WithMetadata(priorityKey, string(priority)) }

// WithMetadata sends a value with every call. A call whose context has outgoing
// metadata with the same key sends that instead.
func WithMetadata(key, value string) Option { return func(c *config) { c.metadata.Set(key, value) } }

// WithMaxResponseBytes limits the size of a response, to 16 MiB by default. The
// client tells the server, which refuses larger calls before doing any work.
func WithMaxResponseBytes(size int) Option { return func(c *config) { c.maxResponseBytes = size } }

// WithKeepalive sets the interval of pings during calls, a minute by default, and
// the time to wait for their answer, 10 seconds by default. Servers close the
// connections of clients that ping much more often than every 30 seconds, and
// gRPC raises intervals below 10 seconds to 10.
func WithKeepalive(interval, timeout time.Duration) Option {
	return func(c *config) { c.keepaliveTime, c.keepaliveTimeout = interval, timeout }
}

// WithHealthChecks watches the health of each server and sends calls only to those
// that are ready. Use it for names with several addresses. If no server is ready,
// calls and [Client.IsReady] fail with UNAVAILABLE without a reason.
func WithHealthChecks() Option { return func(c *config) { c.hasHealthChecks = true } }

// WithoutRetries turns retries off: a call fails after one attempt, and a stream
// when its connection breaks.
func WithoutRetries() Option {
	return func(c *config) {
		c.isWithoutRetries = true
		c.dial = append(c.dial, grpc.WithDisableRetry())
	}
}

// WithDialOptions adds gRPC options, such as a stats handler. They override the
// client's own.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(c *config) { c.dial = append(c.dial, options...) }
}

func (c *config) serviceConfig() string {
	if c.hasHealthChecks {
		return fmt.Sprintf(serviceConfig, healthChecks)
	}
	return fmt.Sprintf(serviceConfig, "")
}

func (c *config) credentials() (credentials.TransportCredentials, error) {
	if c.isPlaintext {
		if c.tls != nil || c.rootCAFile != "" || c.certificateFile != "" {
			return nil, errors.New("align: WithPlaintext excludes the options of TLS")
		}
		return insecure.NewCredentials(), nil
	}
	made := &tls.Config{}
	if c.tls != nil {
		made = c.tls.Clone()
	}
	if c.rootCAFile != "" {
		pem, err := os.ReadFile(c.rootCAFile)
		if err != nil {
			return nil, fmt.Errorf("align: %w", err)
		}
		made.RootCAs = x509.NewCertPool()
		if !made.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("align: %s has no certificate in PEM", c.rootCAFile)
		}
	}
	if c.certificateFile != "" {
		if _, err := c.certificate(nil); err != nil {
			return nil, err
		}
		made.GetClientCertificate = c.certificate
	}
	return credentials.NewTLS(made), nil
}

func (c *config) certificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.certificateFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("align: client certificate: %w", err)
	}
	return &pair, nil
}

// outgoing adds the client's metadata, except for keys that the call has.
func (c *config) outgoing(ctx context.Context) context.Context {
	sent, _ := metadata.FromOutgoingContext(ctx)
	added := c.metadata.Copy()
	added.Set(maxResponseBytesKey, strconv.Itoa(c.maxResponseBytes))
	for key := range added {
		if len(sent.Get(key)) > 0 {
			delete(added, key)
		}
	}
	return metadata.NewOutgoingContext(ctx, metadata.Join(sent, added))
}

func (c *config) stream(
	ctx context.Context, description *grpc.StreamDesc, conn *grpc.ClientConn,
	method string, open grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return open(c.outgoing(ctx), description, conn, method, options...)
}
