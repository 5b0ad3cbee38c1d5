package align_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/alignserve/alignserve/client/go/align"
	"github.com/alignserve/alignserve/client/go/alignpb"
)

// server answers every text with its length, and fails as a test plans.
type server struct {
	alignpb.UnimplementedAlignServiceServer
	target string

	mutex    sync.Mutex
	failures []error // of the next calls
	received []metadata.MD
	requests []any
	onText   func(ctx context.Context, request *alignpb.EmbedTextRequest) (*alignpb.EmbedTextResponse, error)
	onImage  func(request *alignpb.EmbedImageRequest) (*alignpb.EmbedImageResponse, error)
	onStream func(number int, stream serverStream) error
	streams  int
}

type serverStream = grpc.BidiStreamingServer[alignpb.StreamInferRequest, alignpb.StreamInferResponse]

// serve starts a server on a free port for the length of a test.
func serve(t *testing.T, options ...grpc.ServerOption) *server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	made := &server{target: listener.Addr().String()}
	running := grpc.NewServer(append([]grpc.ServerOption{grpc.MaxRecvMsgSize(16 << 20)}, options...)...)
	alignpb.RegisterAlignServiceServer(running, made)
	go func() { _ = running.Serve(listener) }()
	t.Cleanup(running.Stop)
	return made
}

func connect(t *testing.T, s *server, options ...align.Option) *align.Client {
	t.Helper()
	client, err := align.New(s.target, append([]align.Option{align.WithPlaintext()}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// fail makes the next calls fail, one error each.
func (s *server) fail(failures ...error) { s.failures = append(s.failures, failures...) }

// calls returns how many calls have arrived.
func (s *server) calls() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return len(s.received)
}

func (s *server) receive(ctx context.Context, request any) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	sent, _ := metadata.FromIncomingContext(ctx)
	s.received = append(s.received, sent)
	s.requests = append(s.requests, request)
	if len(s.failures) == 0 {
		return nil
	}
	failure := s.failures[0]
	s.failures = s.failures[1:]
	return failure
}

func (s *server) EmbedText(ctx context.Context, request *alignpb.EmbedTextRequest) (*alignpb.EmbedTextResponse, error) {
	if err := s.receive(ctx, request); err != nil {
		return nil, err
	}
	if s.onText != nil {
		return s.onText(ctx, request)
	}
	return embedTexts(request), nil
}

func (s *server) EmbedImage(ctx context.Context, request *alignpb.EmbedImageRequest) (*alignpb.EmbedImageResponse, error) {
	if err := s.receive(ctx, request); err != nil {
		return nil, err
	}
	if s.onImage != nil {
		return s.onImage(request)
	}
	return &alignpb.EmbedImageResponse{}, nil
}

func (s *server) StreamInfer(stream serverStream) error {
	s.mutex.Lock()
	s.streams++
	number := s.streams
	s.mutex.Unlock()
	if s.onStream != nil {
		return s.onStream(number, stream)
	}
	return answerAll(stream)
}

// answerAll answers every item of a stream.
func answerAll(stream serverStream) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			return nil // the client has sent everything, or has left
		}
		if err := stream.Send(answerTo(request)); err != nil {
			return err
		}
	}
}

func answerTo(request *alignpb.StreamInferRequest) *alignpb.StreamInferResponse {
	return &alignpb.StreamInferResponse{
		CorrelationId: request.GetCorrelationId(),
		Result:        &alignpb.StreamInferResponse_EmbedText{EmbedText: embedTexts(request.GetEmbedText())},
	}
}

func errorTo(request *alignpb.StreamInferRequest, err error) *alignpb.StreamInferResponse {
	return &alignpb.StreamInferResponse{
		CorrelationId: request.GetCorrelationId(),
		Result:        &alignpb.StreamInferResponse_Error{Error: status.Convert(err).Proto()},
	}
}

func embedTexts(request *alignpb.EmbedTextRequest) *alignpb.EmbedTextResponse {
	answer := &alignpb.EmbedTextResponse{}
	for _, text := range request.GetTexts() {
		answer.Embeddings = append(answer.Embeddings, &alignpb.Embedding{Values: []float32{float32(len(text)), 0}})
		answer.Tokenizations = append(answer.Tokenizations, &alignpb.Tokenization{TokenCount: int32(len(text))})
	}
	return answer
}

// failure is an error of the server: its reason, and a RetryInfo if delay is not
// negative.
func failure(code codes.Code, reason string, delay time.Duration) error {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: "alignserve.v1"}}
	if delay >= 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
	}
	return withDetails(code, details...)
}

func withDetails(code codes.Code, details ...protoadapt.MessageV1) error {
	made, err := status.New(code, "as planned").WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return made.Err()
}
