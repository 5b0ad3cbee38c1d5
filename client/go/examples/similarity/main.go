// Command similarity compares two pictures and a text, classifies the first
// picture, and embeds files over a stream:
//
//	go run ./examples/similarity -plaintext cat.jpg dog.jpg "a cat" photos/*.jpg
package main

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"log"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/alignserve/alignserve/client/go/align"
)

func main() {
	target := flag.String("server", "127.0.0.1:50051", "address of the server")
	plaintext := flag.Bool("plaintext", false, "connect without TLS")
	rootCA := flag.String("ca", "", "PEM file of a certificate authority")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: similarity [options] IMAGE IMAGE TEXT [FILE...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() < 3 {
		flag.Usage()
		os.Exit(2)
	}

	options := []align.Option{}
	if *plaintext {
		options = append(options, align.WithPlaintext())
	}
	if *rootCA != "" {
		options = append(options, align.WithRootCA(*rootCA))
	}
	if key := os.Getenv("ALIGNSERVE_API_KEY"); key != "" {
		options = append(options, align.WithAPIKey(key))
	}
	client, err := align.New(*target, options...)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, client, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, client *align.Client, arguments []string) error {
	first, second, text, files := arguments[0], arguments[1], arguments[2], arguments[3:]
	if err := compare(ctx, client, first, second, text); err != nil {
		return err
	}
	if err := classify(ctx, client, first); err != nil {
		return err
	}
	return embedFiles(ctx, client, files)
}

func compare(ctx context.Context, client *align.Client, first, second, text string) error {
	images := make([]align.Image, 2)
	for position, path := range []string{first, second} {
		var err error
		if images[position], err = align.ReadImage(path); err != nil {
			return err
		}
	}
	pictures, err := client.EmbedImages(ctx, images)
	if err != nil {
		return err
	}
	texts, err := client.EmbedTexts(ctx, []string{text})
	if err != nil {
		return err
	}
	fmt.Printf("%s and %s: %.4f\n", first, second, pictures[0].Vector.Cosine(pictures[1].Vector))
	fmt.Printf("%s and %q: %.4f\n", first, text, pictures[0].Vector.Cosine(texts[0].Vector))
	fmt.Printf("%s and %q: %.4f\n", second, text, pictures[1].Vector.Cosine(texts[0].Vector))
	return nil
}

func classify(ctx context.Context, client *align.Client, path string) error {
	image, err := align.ReadImage(path)
	if err != nil {
		return err
	}
	results, err := client.Classify(ctx, []align.Image{image}, []string{"cat", "dog", "cup of coffee"},
		align.Templates("a photo of a {label}"), align.TopK(2))
	if err != nil {
		return err
	}
	for _, found := range results[0] {
		fmt.Printf("%s is a %s: score %.4f, similarity %.4f\n", path, found.Label, found.Score, found.Similarity)
	}
	return nil
}

func embedFiles(ctx context.Context, client *align.Client, paths []string) error {
	for result, err := range client.Stream(ctx, readEach(paths)) {
		if err != nil {
			return err // the stream as a whole
		}
		if result.Err != nil {
			fmt.Printf("%s failed: %v\n", filepath.Base(result.ID), result.Err)
			continue
		}
		fmt.Printf("%s: %.3f…\n", filepath.Base(result.ID), result.Embedding.Vector[:3])
	}
	return nil
}

// readEach reads each file when the stream has room for it.
func readEach(paths []string) iter.Seq[align.Item] {
	return func(yield func(align.Item) bool) {
		for _, path := range paths {
			image, err := align.ReadImage(path)
			if err != nil {
				log.Print(err)
				continue
			}
			if !yield(align.ImageItem(path, image)) {
				return
			}
		}
	}
}
