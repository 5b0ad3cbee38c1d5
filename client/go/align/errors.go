package align

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is why a call, an item of a stream or a whole stream failed.
type Error struct {
	// Code is the gRPC code.
	Code codes.Code
	// Reason is stable and for programs, such as QUEUE_FULL. It is empty if the
	// error comes from elsewhere: a broken connection, a deadline, a proxy.
	Reason string
	// Domain is the namespace of Reason: alignserve.v1, or empty without a reason.
	Domain string
	// Message is for people and may change.
	Message string
	// Violations are the fields at fault.
	Violations []FieldViolation
	// RetryDelay is how long the server asks the caller to wait; nil if it does not.
	RetryDelay *time.Duration
	// ErrorID identifies the error in the server's log; empty unless Code is Internal.
	ErrorID string
	// Metadata has further details of Reason.
	Metadata map[string]string

	status *status.Status
	cause  error
}

// FieldViolation names a request field that the server refused.
type FieldViolation struct {
	// Field is a path, such as images[3].content.
	Field string
	// Reason is as in [Error], for this field.
	Reason string
	// Description is for people.
	Description string
}

func (e *Error) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("align: %s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("align: %s (%s): %s", e.Code, e.Reason, e.Message)
}

// Unwrap returns the context's error if it ended the call.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus lets [status.FromError] and [status.Code] read the error.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// errorOf decodes the error of a call that was made with ctx.
func errorOf(ctx context.Context, err error) *Error {
	if known, ok := errors.AsType[*Error](err); ok {
		return known
	}
	reported, isStatus := status.FromError(err)
	if !isStatus {
		reported = status.FromContextError(err)
	}
	found := errorOfStatus(reported)
	switch ended := ctx.Err(); {
	case found.Code == codes.Canceled && found.Reason == "" && ended != nil:
		found = errorOfStatus(status.FromContextError(ended))
		found.cause = ended
	case found.Code == codes.DeadlineExceeded: // the server's timer may be first
		found.cause = context.DeadlineExceeded
	}
	return found
}

func errorOfStatus(s *status.Status) *Error {
	found := &Error{Code: s.Code(), Message: s.Message(), status: s}
	for _, detail := range s.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			found.Reason, found.Domain, found.Metadata = detail.GetReason(), detail.GetDomain(), detail.GetMetadata()
			found.ErrorID = found.Metadata["error_id"]
		case *errdetails.RetryInfo:
			delay := detail.GetRetryDelay().AsDuration()
			found.RetryDelay = &delay
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				found.Violations = append(found.Violations, FieldViolation{
					Field:       violation.GetField(),
					Reason:      violation.GetReason(),
					Description: violation.GetDescription(),
				})
			}
		}
	}
	return found
}

// isCallers reports whether the caller's own context ended the call.
func (e *Error) isCallers() bool { return e.cause != nil }

// isRefusal reports whether a full server asks the client to retry later. A retry
// of WOULD_MISS_DEADLINE would have the same deadline and less time.
func (e *Error) isRefusal() bool {
	return e.Code == codes.ResourceExhausted && e.RetryDelay != nil && e.Reason != "WOULD_MISS_DEADLINE"
}

// isForeignCancel reports whether a stopping server or a proxy cancelled the call,
// not its caller.
func (e *Error) isForeignCancel() bool {
	return e.Code == codes.Canceled && e.Reason == "" && !e.isCallers()
}

// isBroken reports whether the connection of a stream broke, or the server ended
// the stream so that it moves to another. The server's own INTERNAL errors always
// have a reason.
func (e *Error) isBroken() bool {
	return e.Code == codes.Unavailable || e.isForeignCancel() || (e.Code == codes.Internal && e.Reason == "")
}
