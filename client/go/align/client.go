package align

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/alignserve/alignserve/client/go/alignpb"
)

// retryBufferBytes is how much of a request gRPC keeps to retry it: more than a
// server accepts by default (16 MiB). gRPC's default, 256 KiB, is less than many images.
const retryBufferBytes = 64 << 20

// Client calls one server, or all servers that a name resolves to.
type Client struct {
	conn   *grpc.ClientConn
	stub   alignpb.AlignServiceClient
	health grpc_health_v1.HealthClient
	config *config
}

// New returns a client for the server at HOST:PORT, or at any other gRPC target,
// such as dns:///align:50051. It connects on the first call. It fails if a
// certificate cannot be read or the target is malformed.
func New(target string, options ...Option) (*Client, error) {
	made := newConfig()
	for _, option := range options {
		option(made)
	}
	transport, err := made.credentials()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(made.serviceConfig()),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(made.maxResponseBytes),
			grpc.MaxRetryRPCBufferSize(retryBufferBytes),
		),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:    made.keepaliveTime,
			Timeout: made.keepaliveTimeout,
		}),
		// Reconnects soon after a server restarts; gRPC's own backoff grows to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: initialBackoff, Multiplier: 2, Jitter: jitter, MaxDelay: maxBackoff,
			},
			MinConnectTimeout: 10 * time.Second,
		}),
		grpc.WithChainUnaryInterceptor(made.unary),
		grpc.WithChainStreamInterceptor(made.stream),
	}, made.dial...)...)
	if err != nil {
		return nil, fmt.Errorf("align: %w", err)
	}
	return &Client{
		conn:   conn,
		stub:   alignpb.NewAlignServiceClient(conn),
		health: grpc_health_v1.NewHealthClient(conn),
		config: made,
	}, nil
}

// Close closes the connections and cancels open calls.
func (c *Client) Close() error {
	c.config.close()
	return c.conn.Close()
}

// Stub returns the generated client on the same connections, for everything that
// the methods of Client leave out. Its unary calls have the same deadline,
// metadata, retries and errors.
func (c *Client) Stub() alignpb.AlignServiceClient { return c.stub }

// ModelInfo returns the model and the limits of the server. They do not change
// while it runs.
func (c *Client) ModelInfo(ctx context.Context) (*alignpb.GetModelInfoResponse, error) {
	return c.stub.GetModelInfo(ctx, &alignpb.GetModelInfoRequest{})
}

// IsReady reports whether the server is ready. It needs no API key. It returns an
// error if the server does not answer.
func (c *Client) IsReady(ctx context.Context) (bool, error) {
	answer, err := c.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{
		Service: alignpb.AlignService_ServiceDesc.ServiceName,
	})
	if err != nil {
		return false, err
	}
	return answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING, nil
}
