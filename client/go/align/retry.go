package align

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
)

const (
	maxAttempts       = 5  // of a call that a server or proxy cancels; equal to the service config's
	maxStreamAttempts = 10 // consecutive attempts of a stream without any answer
	initialBackoff    = 100 * time.Millisecond
	maxBackoff        = 5 * time.Second
	jitter            = 0.25 // maximum random addition, so that clients do not retry in step
)

// serviceConfig makes gRPC retry calls after UNAVAILABLE, as the server's pushback
// says, and balance them over all addresses of a name.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [
      {"service": "alignserve.v1.AlignService", "method": "EmbedImage"},
      {"service": "alignserve.v1.AlignService", "method": "EmbedText"},
      {"service": "alignserve.v1.AlignService", "method": "Classify"},
      {"service": "alignserve.v1.AlignService", "method": "Compare"},
      {"service": "alignserve.v1.AlignService", "method": "EmbedQuery"},
      {"service": "alignserve.v1.AlignService", "method": "GetModelInfo"}
    ],
    "retryPolicy": {
      "maxAttempts": 5,
      "initialBackoff": "0.1s",
      "maxBackoff": "5s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1}%s
}`

// healthChecks is added to the service config by [WithHealthChecks].
const healthChecks = `, "healthCheckConfig": {"serviceName": "alignserve.v1.AlignService"}`

// unary retries what gRPC's own retries do not cover: they neither read RetryInfo
// nor know who cancelled a call.
func (c *config) unary(
	ctx context.Context, method string, request, reply any,
	conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	if _, isSet := ctx.Deadline(); !isSet && c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	ctx = c.outgoing(ctx)
	for attempt := 1; ; attempt++ {
		err := invoke(ctx, method, request, reply, conn, options...)
		if err == nil {
			return nil
		}
		failure := errorOf(ctx, err)
		if !c.retries(failure, attempt) || !c.pause(ctx, delayAfter(failure, attempt)) {
			return failure
		}
	}
}

// retries reports whether a unary call is retried. After refusals by a full server
// only the deadline limits the number of attempts.
func (c *config) retries(failure *Error, attempt int) bool {
	if c.isWithoutRetries || c.isClosed() {
		return false
	}
	return failure.isRefusal() || (failure.isForeignCancel() && attempt < maxAttempts)
}

// delayAfter returns the pause after an attempt, numbered from 1: the server's
// delay, or a growing one if that is longer.
func delayAfter(failure *Error, attempt int) time.Duration {
	delay := min(initialBackoff<<min(attempt-1, 16), maxBackoff)
	if failure.RetryDelay != nil {
		delay = max(delay, *failure.RetryDelay)
	}
	return delay + time.Duration(float64(delay)*jitter*rand.Float64())
}

// isClosed reports whether [Client.Close] ended the call.
func (c *config) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// pause sleeps, or reports false: at once if the context would end first, and when
// the client is closed.
func (c *config) pause(ctx context.Context, delay time.Duration) bool {
	if deadline, isSet := ctx.Deadline(); isSet && time.Until(deadline) <= delay {
		return false
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	case <-c.closed:
		return false
	}
}
