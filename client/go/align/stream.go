package align

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/alignserve/alignserve/client/go/alignpb"
)

const defaultWindow = 32 // the default of the server's max_stream_in_flight

// StreamOption changes a stream.
type StreamOption func(*streamOptions)

type streamOptions struct {
	window    int
	isOrdered bool
}

// Window limits the number of items that have been read but not answered, to 32 by
// default. It bounds the memory of a stream.
func Window(items int) StreamOption { return func(o *streamOptions) { o.window = max(items, 1) } }

// Ordered yields results in the order of the items. A slow item then delays those
// behind it.
func Ordered() StreamOption { return func(o *streamOptions) { o.isOrdered = true } }

// Stream runs any number of items over one stream, and yields each result when it
// is ready. If an item fails, its result has Err. A non-nil second value is an
// [*Error] that ended the whole stream.
//
// If the connection breaks, or the server shuts down or ends the stream because of
// its age, the unanswered items are sent again on a new stream: none is lost or
// yielded twice. The stream fails after ten consecutive attempts without an answer.
//
// A separate goroutine reads the items, at most a window ahead of the results, so
// the sequence may be infinite. Leaving the loop or ending the context cancels the
// stream. If the sequence is blocked at that moment, its goroutine ends when the
// sequence yields the next item or returns.
func (c *Client) Stream(ctx context.Context, items iter.Seq[Item], options ...StreamOption) iter.Seq2[Result, error] {
	made := streamOptions{window: defaultWindow}
	for _, option := range options {
		option(&made)
	}
	return func(yield func(Result, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		run := &stream{
			client:     c,
			isOrdered:  made.isOrdered,
			room:       make(chan struct{}, made.window),
			items:      make(chan Item),
			unanswered: map[uint64]Item{},
			yield:      yield,
		}
		go run.read(ctx, items)
		if err := run.run(ctx); err != nil && !errors.Is(err, errLeft) {
			yield(Result{}, errorOf(ctx, err))
		}
	}
}

// errLeft ends a stream when the caller leaves the loop.
var errLeft = errors.New("the caller has left")

var errEndedEarly = status.Error(codes.Unavailable, "the server ended the stream early")

type streamCall = grpc.BidiStreamingClient[alignpb.StreamInferRequest, alignpb.StreamInferResponse]

// stream is one run of [Client.Stream], over as many calls as it takes.
type stream struct {
	client    *Client
	isOrdered bool
	yield     func(Result, error) bool
	room      chan struct{} // one element for each item that is read and not answered
	items     chan Item     // closed after the last

	mutex      sync.Mutex // guards what follows
	unanswered map[uint64]Item
	last       uint64 // number of the last item that entered
	isRead     bool   // all items have entered
}

// read reads the caller's items, at most a window ahead.
func (s *stream) read(ctx context.Context, items iter.Seq[Item]) {
	defer close(s.items)
	for item := range items {
		select {
		case s.room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		select {
		case s.items <- item:
		case <-ctx.Done():
			return
		}
	}
}

// run opens calls until every item is answered. It opens none without items.
func (s *stream) run(ctx context.Context) error {
	attempt := 0
	for {
		hasWork, err := s.wait(ctx)
		if err != nil || !hasWork {
			return err
		}
		answers, err := s.call(ctx)
		if err == nil {
			return ctx.Err() // which also ends the reading of items
		}
		if errors.Is(err, errLeft) {
			return err
		}
		failure := errorOf(ctx, err)
		if answers > 0 || failure.Reason == "STREAM_AGED" {
			attempt = 0
		}
		attempt++
		if !s.opensAgain(failure, attempt) || !s.client.config.pause(ctx, delayAfter(failure, attempt)) {
			return failure
		}
	}
}

func (s *stream) opensAgain(failure *Error, attempt int) bool {
	if s.client.config.isWithoutRetries || s.client.config.isClosed() || attempt >= maxStreamAttempts {
		return false
	}
	return failure.isBroken() || failure.isRefusal()
}

// wait returns true once there is an item to send, and false at the end of all.
func (s *stream) wait(ctx context.Context) (bool, error) {
	if len(s.unsent()) > 0 {
		return true, nil
	}
	select {
	case item, isOpen := <-s.items:
		s.enter(item, isOpen)
		return isOpen, ctx.Err() // the reader also closes at the end of the context
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// call runs one call, and returns how many items it answered and why it ended:
// nil at the end of all items.
func (s *stream) call(ctx context.Context) (answers int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	call, err := s.client.stub.StreamInfer(ctx)
	if err != nil {
		cancel()
		return 0, err
	}
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel()
	sender.Go(func() { s.send(ctx, call) })
	for {
		response, err := call.Recv()
		if err != nil {
			return answers, s.endOf(err)
		}
		if err := s.answer(response); err != nil {
			return answers, err
		}
		answers++
	}
}

// send sends the unanswered items, then those that come, until the call ends.
// Errors reach the receiver.
func (s *stream) send(ctx context.Context, call streamCall) {
	if s.isOrdered && call.Send(orderedStream) != nil {
		return
	}
	for _, number := range s.unsent() {
		if s.sendItem(call, number) != nil {
			return
		}
	}
	for {
		select {
		case item, isOpen := <-s.items:
			number := s.enter(item, isOpen)
			if !isOpen {
				_ = call.CloseSend() // never fails
				return
			}
			if s.sendItem(call, number) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

var orderedStream = &alignpb.StreamInferRequest{
	StreamOptions: &alignpb.StreamOptions{DeliveryOrder: alignpb.DeliveryOrder_DELIVERY_ORDER_AS_REQUESTED},
}

func (s *stream) sendItem(call streamCall, number uint64) error {
	s.mutex.Lock()
	item := s.unanswered[number]
	s.mutex.Unlock()
	message := &alignpb.StreamInferRequest{CorrelationId: strconv.FormatUint(number, 10)}
	if item.message != nil { // the zero Item is refused by the server
		message.Request = item.message.GetRequest()
	}
	return call.Send(message)
}

// enter numbers an item, or notes the end of all.
func (s *stream) enter(item Item, isOpen bool) uint64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if !isOpen {
		s.isRead = true
		return 0
	}
	s.last++
	s.unanswered[s.last] = item
	return s.last
}

// unsent returns the numbers of the items that a new call has to send, in order.
func (s *stream) unsent() []uint64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return slices.Sorted(maps.Keys(s.unanswered))
}

// answer yields a result. UNAVAILABLE for an item ends the call, so that the item
// is sent again.
func (s *stream) answer(response *alignpb.StreamInferResponse) error {
	number, err := strconv.ParseUint(response.GetCorrelationId(), 10, 64)
	s.mutex.Lock()
	item, isKnown := s.unanswered[number]
	s.mutex.Unlock()
	if err != nil || !isKnown {
		return status.Error(codes.Internal, fmt.Sprintf("an answer to an unknown item, %.100q", response.GetCorrelationId()))
	}
	result := resultOf(item.ID, response)
	if failed := response.GetError(); failed != nil {
		failure := errorOfStatus(status.FromProto(failed))
		if failure.Code == codes.Unavailable {
			return failure
		}
		result.Err = failure
	}
	s.mutex.Lock()
	delete(s.unanswered, number)
	s.mutex.Unlock()
	<-s.room
	if !s.yield(result, nil) {
		return errLeft
	}
	return nil
}

// endOf returns why a call ended, or nil if all items are answered.
func (s *stream) endOf(err error) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.isRead && len(s.unanswered) == 0 {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return errEndedEarly
	}
	return err
}
