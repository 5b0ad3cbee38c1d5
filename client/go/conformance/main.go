// Command conformance is the driver of the conformance tests for Go. It reads one
// JSON object per line and answers each; see tests/conformance/PROTOCOL.md.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"

	"github.com/alignserve/alignserve/client/go/align"
)

func main() {
	driver := &driver{answers: json.NewEncoder(os.Stdout)}
	defer driver.close()
	requests := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		asked := &request{}
		if err := requests.Decode(asked); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		driver.answer(asked)
	}
}

// driver has the client that the last connect made.
type driver struct {
	client  *align.Client
	answers *json.Encoder
}

// object is a JSON object of an answer.
type object map[string]any

func (d *driver) answer(asked *request) {
	answer, err := d.run(asked)
	line := object{"id": asked.ID}
	switch {
	case err == nil:
		line["ok"] = answer
	case errors.As(err, new(unsupported)):
		line["unsupported"] = err.Error()
	default:
		line["error"] = errorObject(err)
		if asked.Op == "stream" {
			line["results"] = answer["results"]
		}
	}
	d.write(line)
}

func (d *driver) write(line object) {
	if err := d.answers.Encode(line); err != nil {
		log.Fatal(err)
	}
}

func (d *driver) run(asked *request) (object, error) {
	switch asked.Op {
	case "hello":
		return object{
			"language": "Go",
			"library":  "github.com/alignserve/alignserve/client/go",
			"versions": object{"go": runtime.Version(), "grpc-go": grpc.Version},
		}, nil
	case "connect":
		return object{}, d.connect(asked)
	case "close":
		d.close()
		return object{}, nil
	case "stream":
		return d.stream(asked)
	case "repeat":
		return d.repeat(asked)
	}
	call, isKnown := unaryCalls[asked.Op]
	if !isKnown {
		return nil, unsupported("no operation " + asked.Op)
	}
	ctx, cancel := asked.context()
	defer cancel()
	return call(ctx, d.client, asked)
}

func (d *driver) connect(asked *request) error {
	d.close()
	client, err := align.New(asked.Target, asked.options()...)
	d.client = client
	return err
}

func (d *driver) close() {
	if d.client != nil {
		_ = d.client.Close()
		d.client = nil
	}
}

type unsupported string

func (u unsupported) Error() string { return string(u) }

func errorObject(err error) object {
	found, isCalls := errors.AsType[*align.Error](err)
	if !isCalls {
		return object{
			"code": "CLIENT", "reason": "", "domain": nil, "message": err.Error(),
			"fields": []object{}, "retry_delay_seconds": nil, "metadata": object{},
		}
	}
	fields := make([]object, len(found.Violations))
	for position, violation := range found.Violations {
		fields[position] = object{
			"field": violation.Field, "reason": violation.Reason, "description": violation.Description,
		}
	}
	line := object{
		"code": code.Code(found.Code).String(), "reason": found.Reason, "domain": nil, "message": found.Message,
		"fields": fields, "retry_delay_seconds": nil, "metadata": object{},
	}
	if found.Domain != "" {
		line["domain"] = found.Domain
	}
	if found.RetryDelay != nil {
		line["retry_delay_seconds"] = found.RetryDelay.Seconds()
	}
	if found.Metadata != nil {
		line["metadata"] = found.Metadata
	}
	return line
}

// context returns a context with the deadline and the cancellation of a call.
func (r *request) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	if r.TimeoutSeconds != nil {
		ctx, cancel = context.WithTimeout(ctx, seconds(*r.TimeoutSeconds))
	}
	if r.CancelAfterMS != nil {
		time.AfterFunc(time.Duration(*r.CancelAfterMS)*time.Millisecond, cancel)
	}
	return ctx, cancel
}

func seconds(count float64) time.Duration { return time.Duration(count * float64(time.Second)) }

func (d *driver) stream(asked *request) (object, error) {
	ctx, cancel := asked.context()
	defer cancel()
	items, err := asked.streamItems()
	if err != nil {
		return object{"results": []object{}}, err
	}
	results := []object{}
	answer := func() object { return object{"reconnects": nil, "results": results} }
	for result, err := range d.client.Stream(ctx, items, asked.streamOptions()...) {
		if err != nil {
			return answer(), err
		}
		results = append(results, resultObject(result))
		if asked.ProgressEvery > 0 && len(results)%asked.ProgressEvery == 0 {
			d.write(object{"id": asked.ID, "progress": len(results)})
		}
		if len(results) == asked.CancelAfterItems {
			break
		}
	}
	return answer(), nil
}

// repeat makes one call many times, concurrently.
func (d *driver) repeat(asked *request) (object, error) {
	calls, failures := make(chan struct{}), make(chan error)
	for range asked.Concurrency {
		go func() {
			for range calls {
				_, err := d.run(asked.Request)
				failures <- err
			}
		}()
	}
	go func() {
		for range asked.Calls {
			calls <- struct{}{}
		}
		close(calls)
	}()
	answered, counts := 0, map[string]object{}
	for range asked.Calls {
		if err := <-failures; err == nil {
			answered++
		} else {
			count(counts, errorObject(err))
		}
	}
	found := []object{}
	for _, counted := range counts {
		found = append(found, counted)
	}
	return object{"answered": answered, "errors": found}, nil
}

func count(counts map[string]object, failure object) {
	key := fmt.Sprint(failure["code"], failure["reason"])
	if counts[key] == nil {
		counts[key] = object{"code": failure["code"], "reason": failure["reason"], "count": 0}
	}
	counts[key]["count"] = counts[key]["count"].(int) + 1
}
