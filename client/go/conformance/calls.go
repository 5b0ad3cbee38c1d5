package main

import (
	"context"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/alignserve/alignserve/client/go/align"
)

type unaryCall func(context.Context, *align.Client, *request) (object, error)

var unaryCalls = map[string]unaryCall{
	"embed_image": embedImage,
	"embed_text":  embedText,
	"embed_query": embedQuery,
	"classify":    classify,
	"compare":     compare,
	"model_info":  modelInfo,
	"health":      health,
}

func embedImage(ctx context.Context, client *align.Client, asked *request) (object, error) {
	images, err := asked.images()
	if err != nil {
		return nil, err
	}
	found, err := client.EmbedImages(ctx, images, asked.callKeys.options()...)
	return embeddings(found), err
}

func embedText(ctx context.Context, client *align.Client, asked *request) (object, error) {
	found, err := client.EmbedTexts(ctx, asked.Texts, asked.callKeys.options()...)
	vectors, tokenizations := make([]align.Embedding, len(found)), make([]object, len(found))
	for position, text := range found {
		vectors[position] = text.Embedding
		tokenizations[position] = object{
			"token_count":         text.TokenCount,
			"truncated":           text.Truncated,
			"unknown_token_count": text.UnknownTokenCount,
		}
	}
	answer := embeddings(vectors)
	answer["tokenizations"] = tokenizations
	return answer, err
}

func embedQuery(ctx context.Context, client *align.Client, asked *request) (object, error) {
	queries, err := asked.queries()
	if err != nil {
		return nil, err
	}
	found, err := client.EmbedQueries(ctx, queries, asked.callKeys.options()...)
	return embeddings(found), err
}

func classify(ctx context.Context, client *align.Client, asked *request) (object, error) {
	images, err := asked.images()
	if err != nil {
		return nil, err
	}
	found, err := client.Classify(ctx, images, asked.Labels, asked.callKeys.options()...)
	results, counts := make([][]object, len(found)), make([]int, len(found))
	for position, labels := range found {
		results[position], counts[position] = classificationObjects(labels), len(labels)
		if asked.Summary {
			results[position] = results[position][:1]
		}
	}
	if asked.Summary {
		return object{"results": results, "counts": counts}, err
	}
	return object{"results": results}, err
}

func compare(ctx context.Context, client *align.Client, asked *request) (object, error) {
	pairs, err := asked.pairs()
	if err != nil {
		return nil, err
	}
	found, err := client.Compare(ctx, pairs, asked.callKeys.options()...)
	comparisons := make([]object, len(found))
	for position, comparison := range found {
		comparisons[position] = object{"similarity": comparison.Similarity, "logit": comparison.Logit}
	}
	return object{"comparisons": comparisons}, err
}

func modelInfo(ctx context.Context, client *align.Client, _ *request) (object, error) {
	info, err := client.ModelInfo(ctx)
	if err != nil {
		return nil, err
	}
	answer := object{}
	message := info.ProtoReflect()
	fields := message.Descriptor().Fields()
	for position := range fields.Len() {
		field := fields.Get(position)
		value := message.Get(field)
		if field.IsList() {
			answer[string(field.Name())] = listOf(value.List())
		} else {
			answer[string(field.Name())] = value.Interface()
		}
	}
	return answer, nil
}

func listOf(list protoreflect.List) []any {
	values := make([]any, list.Len())
	for position := range values {
		values[position] = list.Get(position).Interface()
	}
	return values
}

func health(ctx context.Context, client *align.Client, _ *request) (object, error) {
	ready, err := client.IsReady(ctx)
	return object{"ready": ready}, err
}

func embeddings(found []align.Embedding) object {
	values := make([]any, len(found))
	for position, embedding := range found {
		values[position] = embeddingValue(embedding)
	}
	return object{"embeddings": values}
}

// embeddingValue shows an embedding in the format that it came in.
func embeddingValue(embedding align.Embedding) any {
	switch {
	case embedding.Binary != nil:
		return embedding.Binary
	case embedding.Int8 != nil:
		return object{"values": embedding.Int8, "scale": float64(embedding.Int8Scale)}
	}
	numbers := make([]float64, len(embedding.Vector)) // JSON would shorten a float32
	for position, number := range embedding.Vector {
		numbers[position] = float64(number)
	}
	return numbers
}

func classificationObjects(found []align.Classification) []object {
	objects := make([]object, len(found))
	for position, label := range found {
		objects[position] = object{
			"label": label.Label, "label_index": label.LabelIndex,
			"score": label.Score, "similarity": label.Similarity, "logit": label.Logit,
		}
	}
	return objects
}

func resultObject(result align.Result) object {
	answer := object{"id": result.ID}
	switch {
	case result.Err != nil:
		answer["error"] = errorObject(result.Err)
	case result.Classifications != nil:
		answer["classifications"] = classificationObjects(result.Classifications)
	case result.Comparison != nil:
		answer["similarity"], answer["logit"] = result.Comparison.Similarity, result.Comparison.Logit
	default:
		answer["embedding"] = embeddingValue(*result.Embedding)
	}
	return answer
}
