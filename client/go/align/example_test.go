package align_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log"
	"os"

	"github.com/alignserve/alignserve/client/go/align"
)

func Example() {
	client, err := align.New("align.example.com:443", align.WithAPIKey(os.Getenv("ALIGNSERVE_API_KEY")))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	ctx := context.Background()
	cat, err := align.ReadImage("cat.jpg")
	if err != nil {
		log.Fatal(err)
	}
	images, err := client.EmbedImages(ctx, []align.Image{cat})
	if err != nil {
		log.Fatal(err)
	}
	texts, err := client.EmbedTexts(ctx, []string{"a cat", "a cup of coffee"})
	if err != nil {
		log.Fatal(err)
	}
	for _, text := range texts {
		fmt.Println(images[0].Vector.Cosine(text.Vector))
	}
}

func ExampleClient_Stream() {
	var client *align.Client
	var items iter.Seq[align.Item]

	for result, err := range client.Stream(context.Background(), items, align.Window(32)) {
		if err != nil {
			log.Fatal(err) // the stream as a whole
		}
		if result.Err != nil {
			log.Print(result.ID, result.Err) // this item
			continue
		}
		fmt.Println(result.ID, result.Embedding.Vector)
	}
}

func ExampleError() {
	var client *align.Client

	_, err := client.EmbedTexts(context.Background(), []string{" "})
	if e, ok := errors.AsType[*align.Error](err); ok && e.Reason == "TEXT_EMPTY" {
		log.Print(e.Violations)
	}
}
