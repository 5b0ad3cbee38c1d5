package align_test

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/alignserve/alignserve/client/go/align"
	"github.com/alignserve/alignserve/client/go/alignpb"
)

func embed(t *testing.T, client *align.Client, texts ...string) ([]align.TextEmbedding, error) {
	t.Helper()
	return client.EmbedTexts(t.Context(), texts)
}

func asError(t *testing.T, err error) *align.Error {
	t.Helper()
	found, ok := errors.AsType[*align.Error](err)
	if !ok {
		t.Fatalf("got %v, want an *align.Error", err)
	}
	return found
}

func TestTextsComeBackInOrderWithTheirTokens(t *testing.T) {
	client := connect(t, serve(t))

	found, err := embed(t, client, "a", "bcd")

	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found[0].Vector[0] != 1 || found[1].Vector[0] != 3 || found[1].TokenCount != 3 {
		t.Errorf("got %+v", found)
	}
}

func TestEveryPartOfAnErrorIsDecoded(t *testing.T) {
	s := serve(t)
	s.fail(withDetails(codes.InvalidArgument,
		&errdetails.ErrorInfo{Reason: "TEXT_EMPTY", Domain: "alignserve.v1", Metadata: map[string]string{"error_id": "5f"}},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "texts[1]", Reason: "TEXT_EMPTY", Description: "blank"},
		}},
	))

	_, err := embed(t, connect(t, s), "a", " ")

	found := asError(t, err)
	want := []align.FieldViolation{{Field: "texts[1]", Reason: "TEXT_EMPTY", Description: "blank"}}
	if found.Code != codes.InvalidArgument || found.Reason != "TEXT_EMPTY" || found.Domain != "alignserve.v1" ||
		found.ErrorID != "5f" || found.RetryDelay != nil || !reflect.DeepEqual(found.Violations, want) {
		t.Errorf("got %+v", found)
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Error("status.Code does not read the error")
	}
}

func TestTemporaryFailuresAreRetried(t *testing.T) {
	for name, failed := range map[string]error{
		"a full queue":      failure(codes.ResourceExhausted, "QUEUE_FULL", time.Millisecond),
		"a quota":           failure(codes.ResourceExhausted, "QUOTA_EXCEEDED", 0),
		"a starting server": failure(codes.Unavailable, "MODEL_LOADING", time.Millisecond),
		"a broken call":     status.Error(codes.Unavailable, "no connection"),
		"a foreign cancel":  status.Error(codes.Canceled, "the server is stopping"),
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.fail(failed, failed)

			_, err := embed(t, connect(t, s), "a")

			if err != nil || s.calls() != 3 {
				t.Errorf("got %v after %d calls, want an answer after 3", err, s.calls())
			}
		})
	}
}

func TestPermanentFailuresAreNotRetried(t *testing.T) {
	for name, failed := range map[string]error{
		"a deadline too close":  failure(codes.ResourceExhausted, "WOULD_MISS_DEADLINE", time.Millisecond),
		"a delay past it":       failure(codes.ResourceExhausted, "QUEUE_FULL", time.Hour),
		"a limit of a proxy":    status.Error(codes.ResourceExhausted, "too large"),
		"an invalid argument":   failure(codes.InvalidArgument, "TEXT_EMPTY", -1),
		"a failure of a server": failure(codes.Internal, "INTERNAL", -1),
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.fail(failed)

			_, err := embed(t, connect(t, s), "a")

			if status.Code(err) != status.Code(failed) || s.calls() != 1 {
				t.Errorf("got %v after %d calls, want %v after 1", err, s.calls(), failed)
			}
		})
	}
}

func TestForeignCancelsAreRetriedAFewTimes(t *testing.T) {
	s := serve(t)
	for range 9 {
		s.fail(status.Error(codes.Canceled, "the server is stopping"))
	}

	_, err := embed(t, connect(t, s), "a")

	if asError(t, err).Code != codes.Canceled || s.calls() != 5 || errors.Is(err, context.Canceled) {
		t.Errorf("got %v after %d calls, want CANCELLED after 5", err, s.calls())
	}
}

func TestWithoutRetriesMakesOneAttempt(t *testing.T) {
	s := serve(t)
	s.fail(failure(codes.Unavailable, "MODEL_LOADING", time.Millisecond))

	_, err := embed(t, connect(t, s, align.WithoutRetries()), "a")

	if asError(t, err).Reason != "MODEL_LOADING" || s.calls() != 1 {
		t.Errorf("got %v after %d calls", err, s.calls())
	}
}

func TestLargeRequestsAreRetried(t *testing.T) {
	s := serve(t)
	s.fail(status.Error(codes.Unavailable, "no connection"))

	_, err := connect(t, s).EmbedImages(t.Context(), []align.Image{align.ImageBytes(make([]byte, 8<<20))})

	if err != nil || s.calls() != 2 {
		t.Errorf("got %v after %d calls, want an answer after 2", err, s.calls())
	}
}

func TestTheEndOfTheContextEndsACallAndIsItsCause(t *testing.T) {
	arrived := make(chan struct{})
	s := serve(t)
	s.onText = func(ctx context.Context, _ *alignpb.EmbedTextRequest) (*alignpb.EmbedTextResponse, error) {
		close(arrived)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()

	_, err := connect(t, s).EmbedTexts(ctx, []string{"a"})

	if !errors.Is(err, context.Canceled) || asError(t, err).Code != codes.Canceled || s.calls() != 1 {
		t.Errorf("got %v after %d calls", err, s.calls())
	}
}

func TestCallsWithoutADeadlineGetTheClients(t *testing.T) {
	s := serve(t)
	s.onText = func(ctx context.Context, _ *alignpb.EmbedTextRequest) (*alignpb.EmbedTextResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}

	_, err := embed(t, connect(t, s, align.WithTimeout(20*time.Millisecond)), "a")

	if !errors.Is(err, context.DeadlineExceeded) || asError(t, err).Code != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
}

func TestMetadataIsSentUnlessTheCallHasItsOwn(t *testing.T) {
	s := serve(t)
	client := connect(t, s,
		align.WithAPIKey("as_key"), align.WithPriority(align.Bulk), align.WithMaxResponseBytes(1<<20),
		align.WithMetadata("x-team", "search"))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "alignserve-priority", "interactive")

	if _, err := client.EmbedTexts(ctx, []string{"a"}); err != nil {
		t.Fatal(err)
	}

	for key, want := range map[string]string{
		"authorization":                 "Bearer as_key",
		"alignserve-priority":           "interactive",
		"alignserve-max-response-bytes": "1048576",
		"x-team":                        "search",
	} {
		if got := s.received[0].Get(key); !reflect.DeepEqual(got, []string{want}) {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

func TestAnswersUpToTheLimitAreAccepted(t *testing.T) {
	s := serve(t)
	s.onText = func(context.Context, *alignpb.EmbedTextRequest) (*alignpb.EmbedTextResponse, error) {
		large := &alignpb.Embedding{PackedFloat32: make([]byte, 5<<20)}
		return &alignpb.EmbedTextResponse{Embeddings: []*alignpb.Embedding{large}}, nil
	}

	found, err := embed(t, connect(t, s), "a")
	_, tooLarge := embed(t, connect(t, s, align.WithMaxResponseBytes(4<<20)), "a")

	if err != nil || len(found[0].Vector) != 5<<18 {
		t.Errorf("got %d numbers, %v", len(found), err)
	}
	if asError(t, tooLarge).Code != codes.ResourceExhausted || s.calls() != 2 {
		t.Errorf("got %v after %d calls", tooLarge, s.calls())
	}
}

func TestHealthOfAServerThatCannotBeAskedIsAnError(t *testing.T) {
	_, err := connect(t, serve(t)).IsReady(t.Context())

	if asError(t, err).Code != codes.Unimplemented {
		t.Errorf("got %v", err)
	}
}
