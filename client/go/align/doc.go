// Package align is a client of alignserve, which embeds images and texts into
// one vector space and classifies images against any labels.
//
//	client, err := align.New("align.example.com:443", align.WithAPIKey(key))
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//
//	images, err := client.EmbedImages(ctx, []align.Image{cat})
//	texts, err := client.EmbedTexts(ctx, []string{"a cat", "a cup of coffee"})
//	similarity := images[0].Vector.Cosine(texts[0].Vector)
//
// Connections use TLS unless [WithPlaintext] is given. A [Client] is safe for
// concurrent use; create one and keep it.
//
// # Deadlines and retries
//
// The deadline of a call is its context's, or 30 seconds ([WithTimeout]), over
// all attempts. Until then a call is retried when the connection breaks, when the
// server is starting or stopping, and when a full server says how long to wait.
// Retrying is safe, since no method has side effects.
//
// # Errors
//
// Every error of a call is an [*Error] and wraps the context's error if that was
// the cause:
//
//	if e, ok := errors.AsType[*align.Error](err); ok && e.Reason == "IMAGE_UNREADABLE" {
//		log.Print(e.Violations)
//	}
//	if errors.Is(err, context.DeadlineExceeded) { … }
package align
