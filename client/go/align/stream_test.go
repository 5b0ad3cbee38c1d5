package align_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/alignserve/alignserve/client/go/align"
	"github.com/alignserve/alignserve/client/go/alignpb"
)

// texts are items 1 to count, whose embedding is their number.
func texts(count int) iter.Seq[align.Item] {
	return func(yield func(align.Item) bool) {
		for number := range count {
			if !yield(align.TextItem(fmt.Sprint(number+1), strings.Repeat("x", number+1))) {
				return
			}
		}
	}
}

func drain(results iter.Seq2[align.Result, error]) (found []align.Result, err error) {
	for result, failed := range results {
		if failed != nil {
			err = failed
			continue
		}
		found = append(found, result)
	}
	return found, err
}

func numbers(results []align.Result) []int {
	found := []int{}
	for _, result := range results {
		found = append(found, int(result.Embedding.Vector[0]))
	}
	return found
}

func upTo(count int) []int {
	found := make([]int, count)
	for position := range found {
		found[position] = position + 1
	}
	return found
}

func TestEveryItemHasItsResult(t *testing.T) {
	found, err := drain(connect(t, serve(t)).Stream(t.Context(), texts(100)))

	if err != nil || !reflect.DeepEqual(numbers(found), upTo(100)) {
		t.Fatalf("got %v, %v", numbers(found), err)
	}
	for position, result := range found {
		if result.ID != fmt.Sprint(position+1) || result.Err != nil || result.Tokenization.TokenCount != position+1 {
			t.Errorf("got %+v", result)
		}
	}
}

func TestAStreamWithoutItemsOpensNoCall(t *testing.T) {
	s := serve(t)

	found, err := drain(connect(t, s).Stream(t.Context(), texts(0)))

	if len(found) != 0 || err != nil || s.streams != 0 {
		t.Errorf("got %v, %v over %d calls", found, err, s.streams)
	}
}

func TestIDsNeedNotBeUnique(t *testing.T) {
	items := slices.Values([]align.Item{align.TextItem("", "x"), align.TextItem("", "xx")})

	found, err := drain(connect(t, serve(t)).Stream(t.Context(), items))

	if err != nil || !reflect.DeepEqual(numbers(found), upTo(2)) {
		t.Errorf("got %v, %v", found, err)
	}
}

func TestAFailedItemLeavesTheOthers(t *testing.T) {
	s := serve(t)
	s.onStream = func(_ int, stream serverStream) error {
		first, _ := stream.Recv()
		_ = stream.Send(errorTo(first, failure(codes.InvalidArgument, "TEXT_EMPTY", -1)))
		return answerAll(stream)
	}

	found, err := drain(connect(t, s).Stream(t.Context(), texts(2)))

	if err != nil || len(found) != 2 || asError(t, found[0].Err).Reason != "TEXT_EMPTY" || found[1].Err != nil {
		t.Errorf("got %v, %v", found, err)
	}
}

// TestUnansweredItemsAreSentAgain breaks the first stream after three of ten
// answers, in each way in which a stream breaks.
func TestUnansweredItemsAreSentAgain(t *testing.T) {
	for name, end := range map[string]error{
		"a server that stops":   failure(codes.Unavailable, "SHUTTING_DOWN", time.Millisecond),
		"a stream of great age": failure(codes.Unavailable, "STREAM_AGED", 0),
		"a broken connection":   status.Error(codes.Unavailable, "reset"),
		"a foreign cancel":      status.Error(codes.Canceled, "the server is stopping"),
		"a reset by a proxy":    status.Error(codes.Internal, "RST_STREAM"),
		"a quota":               failure(codes.ResourceExhausted, "QUOTA_EXCEEDED", time.Millisecond),
		"an early end":          nil,
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.onStream = func(number int, stream serverStream) error {
				if number > 1 {
					return answerAll(stream)
				}
				for range 3 {
					request, _ := stream.Recv()
					_ = stream.Send(answerTo(request))
				}
				return end
			}

			found, err := drain(connect(t, s).Stream(t.Context(), texts(10), align.Window(4)))

			if err != nil || !reflect.DeepEqual(numbers(found), upTo(10)) || s.streams != 2 {
				t.Errorf("got %v, %v over %d calls", numbers(found), err, s.streams)
			}
		})
	}
}

func TestAnItemThatNoServerCanTakeIsSentAgain(t *testing.T) {
	s := serve(t)
	s.onStream = func(number int, stream serverStream) error {
		if number == 1 {
			request, _ := stream.Recv()
			_ = stream.Send(errorTo(request, failure(codes.Unavailable, "MODEL_LOADING", time.Millisecond)))
		}
		return answerAll(stream)
	}

	found, err := drain(connect(t, s).Stream(t.Context(), texts(3)))

	if err != nil || len(found) != 3 || s.streams != 2 {
		t.Errorf("got %v, %v over %d calls", found, err, s.streams)
	}
}

func TestAStreamThatIsRefusedEnds(t *testing.T) {
	s := serve(t)
	s.onStream = func(int, serverStream) error { return failure(codes.Unauthenticated, "KEY_MISSING", -1) }

	found, err := drain(connect(t, s).Stream(t.Context(), texts(3)))

	if len(found) != 0 || asError(t, err).Reason != "KEY_MISSING" || s.streams != 1 {
		t.Errorf("got %v, %v over %d calls", found, err, s.streams)
	}
}

func TestWithoutRetriesAStreamEndsWhenItBreaks(t *testing.T) {
	s := serve(t)
	s.onStream = func(int, serverStream) error { return failure(codes.Unavailable, "SHUTTING_DOWN", 0) }

	_, err := drain(connect(t, s, align.WithoutRetries()).Stream(t.Context(), texts(3)))

	if asError(t, err).Reason != "SHUTTING_DOWN" || s.streams != 1 {
		t.Errorf("got %v over %d calls", err, s.streams)
	}
}

// TestTheWindowBoundsWhatIsRead lets the server answer only once the window is
// full, and checks that the sequence was not read further.
func TestTheWindowBoundsWhatIsRead(t *testing.T) {
	const window = 4
	var read, answered, most atomic.Int64
	s := serve(t)
	s.onStream = func(_ int, stream serverStream) error {
		held := []*alignpb.StreamInferRequest{}
		for {
			request, err := stream.Recv()
			if err != nil {
				return nil
			}
			if held = append(held, request); len(held) < window {
				continue
			}
			for _, request := range held {
				_ = stream.Send(answerTo(request))
			}
			held = nil
		}
	}
	items := func(yield func(align.Item) bool) {
		for item := range texts(5 * window) {
			most.Store(max(most.Load(), read.Add(1)-answered.Load()))
			if !yield(item) {
				return
			}
		}
	}

	for _, err := range connect(t, s).Stream(t.Context(), items, align.Window(window)) {
		if err != nil {
			t.Fatal(err)
		}
		answered.Add(1)
	}

	// One more waits in the sequence for room, and one result is on its way to the loop.
	if most.Load() > window+2 || answered.Load() != 5*window {
		t.Errorf("read %d ahead and answered %d", most.Load(), answered.Load())
	}
}

func TestOrderedAsksTheServerForTheOrder(t *testing.T) {
	s := serve(t)
	orders := make(chan alignpb.DeliveryOrder, 1)
	s.onStream = func(_ int, stream serverStream) error {
		request, _ := stream.Recv()
		orders <- request.GetStreamOptions().GetDeliveryOrder()
		return answerAll(stream)
	}

	found, err := drain(connect(t, s).Stream(t.Context(), texts(3), align.Ordered()))

	if err != nil || len(found) != 3 || <-orders != alignpb.DeliveryOrder_DELIVERY_ORDER_AS_REQUESTED {
		t.Errorf("got %v, %v", found, err)
	}
}

func TestLeavingTheLoopCancelsTheStream(t *testing.T) {
	s := serve(t)
	ended := make(chan error, 1)
	s.onStream = func(_ int, stream serverStream) error {
		_ = answerAll(stream)
		ended <- stream.Context().Err()
		return nil
	}

	for range connect(t, s).Stream(t.Context(), texts(1_000_000)) {
		break
	}

	if err := <-ended; err == nil {
		t.Error("the server's stream goes on")
	}
}

func TestTheEndOfTheContextEndsAStream(t *testing.T) {
	s := serve(t)
	s.onStream = func(_ int, stream serverStream) error {
		request, _ := stream.Recv()
		_ = stream.Send(answerTo(request))
		<-stream.Context().Done()
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	var last error
	for _, err := range connect(t, s).Stream(ctx, texts(10)) {
		last = err
		cancel()
	}

	if !errors.Is(last, context.Canceled) || s.streams != 1 {
		t.Errorf("got %v over %d calls", last, s.streams)
	}
}

func TestClosingTheClientEndsAStream(t *testing.T) {
	client := connect(t, serve(t))
	count := 0
	var last error
	for _, err := range client.Stream(t.Context(), texts(1<<20)) {
		last = err
		if count++; count == 3 {
			if err := client.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if status.Code(last) != codes.Canceled {
		t.Errorf("the stream ended with %v", last)
	}
}
