package align

import "github.com/alignserve/alignserve/client/go/alignpb"

// Item is one request of a stream, from [ImageItem], [TextItem], [ClassifyItem],
// [CompareItem] or [QueryItem].
type Item struct {
	// ID is returned with the result. It is not sent, and need not be unique.
	ID string

	message *alignpb.StreamInferRequest
}

// Result is the outcome of an item.
type Result struct {
	// ID is the item's.
	ID string
	// Err is why the item failed, an [*Error]. Other items are not affected.
	Err error
	// Embedding is that of an image, a text or a query; nil for other items.
	Embedding *Embedding
	// Tokenization is how the text was tokenized; nil except for text items.
	Tokenization *Tokenization
	// Classifications are the labels, best first; nil except for classify items.
	Classifications []Classification
	// Comparison is nil except for compare items.
	Comparison *Comparison
}

// ImageItem embeds an image.
func ImageItem(id string, image Image, options ...CallOption) Item {
	return Item{id, &alignpb.StreamInferRequest{Request: &alignpb.StreamInferRequest_EmbedImage{
		EmbedImage: newCallOptions(options).embedImages([]Image{image}),
	}}}
}

// TextItem embeds a text.
func TextItem(id, text string, options ...CallOption) Item {
	return Item{id, &alignpb.StreamInferRequest{Request: &alignpb.StreamInferRequest_EmbedText{
		EmbedText: newCallOptions(options).embedTexts([]string{text}),
	}}}
}

// ClassifyItem scores an image against labels.
func ClassifyItem(id string, image Image, labels []string, options ...CallOption) Item {
	return Item{id, &alignpb.StreamInferRequest{Request: &alignpb.StreamInferRequest_Classify{
		Classify: newCallOptions(options).classify([]Image{image}, labels),
	}}}
}

// CompareItem compares an image with a text.
func CompareItem(id string, pair Pair, options ...CallOption) Item {
	return Item{id, &alignpb.StreamInferRequest{Request: &alignpb.StreamInferRequest_Compare{
		Compare: newCallOptions(options).compare([]Pair{pair}),
	}}}
}

// QueryItem embeds a composed query.
func QueryItem(id string, query Query, options ...CallOption) Item {
	return Item{id, &alignpb.StreamInferRequest{Request: &alignpb.StreamInferRequest_EmbedQuery{
		EmbedQuery: newCallOptions(options).embedQueries([]Query{query}),
	}}}
}

func resultOf(id string, response *alignpb.StreamInferResponse) Result {
	found := Result{ID: id}
	switch answer := response.GetResult().(type) {
	case *alignpb.StreamInferResponse_EmbedImage:
		found.Embedding = onlyEmbedding(answer.EmbedImage.GetEmbeddings())
	case *alignpb.StreamInferResponse_EmbedText:
		found.Embedding = onlyEmbedding(answer.EmbedText.GetEmbeddings())
		tokenization := tokenizationAt(answer.EmbedText.GetTokenizations(), 0)
		found.Tokenization = &tokenization
	case *alignpb.StreamInferResponse_EmbedQuery:
		found.Embedding = onlyEmbedding(answer.EmbedQuery.GetEmbeddings())
	case *alignpb.StreamInferResponse_Classify:
		for _, result := range answer.Classify.GetResults() {
			found.Classifications = classificationsOf(result)
		}
	case *alignpb.StreamInferResponse_Compare:
		for _, comparison := range comparisonsOf(answer.Compare) {
			found.Comparison = &comparison
		}
	}
	return found
}

// onlyEmbedding returns the embedding of an item; an answer without one is empty.
func onlyEmbedding(messages []*alignpb.Embedding) *Embedding {
	if len(messages) == 0 {
		return &Embedding{}
	}
	embedding := embeddingOf(messages[0])
	return &embedding
}
