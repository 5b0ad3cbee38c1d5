package align

import (
	"context"

	"github.com/alignserve/alignserve/client/go/alignpb"
)

// CallOption changes a call or a stream item. Calls ignore options that do not
// apply to them.
type CallOption func(*callOptions)

type callOptions struct {
	embedding alignpb.EmbeddingOptions
	truncate  bool
	templates []string
	topK      int32
}

// AsFormat sets the encoding of embeddings of images, texts and queries.
func AsFormat(format Format) CallOption {
	return func(o *callOptions) { o.embedding.Format = alignpb.EmbeddingFormat(format) }
}

// Unnormalized returns embeddings of images, texts and queries as the model
// outputs them, without L2 normalization.
func Unnormalized() CallOption {
	return func(o *callOptions) { o.embedding.SkipNormalization = true }
}

// Truncate truncates texts that are too long in EmbedTexts, Compare and
// EmbedQueries. Without it they are refused.
func Truncate() CallOption { return func(o *callOptions) { o.truncate = true } }

// Templates sets the prompts of Classify, such as "a photo of a {label}".
func Templates(templates ...string) CallOption {
	return func(o *callOptions) { o.templates = templates }
}

// TopK limits Classify to the best labels of each image. Scores are still over all
// labels.
func TopK(count int) CallOption { return func(o *callOptions) { o.topK = int32(count) } }

func newCallOptions(options []CallOption) *callOptions {
	made := &callOptions{}
	made.embedding.Format = alignpb.EmbeddingFormat(Float32)
	for _, option := range options {
		option(made)
	}
	return made
}

// Classification is a label and how well it fits an image.
type Classification struct {
	Label string
	// LabelIndex is the label's position in the call.
	LabelIndex int
	// Score is the probability among the labels of the call. One label always
	// scores best, even if none fits.
	Score float32
	// Similarity is the cosine similarity of image and label. Use a threshold on
	// it to decide whether a label fits at all.
	Similarity float32
	// Logit is Similarity divided by the model's temperature.
	Logit float32
}

// Pair is an image and a text that may describe it.
type Pair struct {
	Image Image
	Text  string
}

// Comparison is how well the text of a pair describes its image.
type Comparison struct {
	// Similarity is the cosine similarity.
	Similarity float32
	// Logit is Similarity divided by the model's temperature.
	Logit float32
	// Tokenization is how the text was tokenized.
	Tokenization
}

// Query is a composed query: a weighted sum of images and texts, such as a photo of
// a bag plus the text "red". Use its embedding to search images or texts.
type Query []Term

// Term is a part of a query, from [ImageTerm] or [TextTerm].
type Term struct{ message *alignpb.QueryTerm }

// ImageTerm adds an image to a query.
func ImageTerm(image Image) Term {
	return Term{&alignpb.QueryTerm{Input: &alignpb.QueryTerm_Image{Image: image.message}}}
}

// TextTerm adds a text to a query.
func TextTerm(text string) Term {
	return Term{&alignpb.QueryTerm{Input: &alignpb.QueryTerm_Text{Text: text}}}
}

// Weighted returns the term with a weight other than 1. Below 0, the query moves
// away from the term.
func (t Term) Weighted(weight float32) Term {
	return Term{&alignpb.QueryTerm{Input: t.message.GetInput(), Weight: &weight}}
}

// EmbedImages returns an embedding for each image, in order. The call is atomic:
// if an image is invalid, it fails and the error names the image. The server
// limits the number of images (MaxClientBatchSize in [Client.ModelInfo]);
// [Client.Stream] accepts any number.
func (c *Client) EmbedImages(ctx context.Context, images []Image, options ...CallOption) ([]Embedding, error) {
	answer, err := c.stub.EmbedImage(ctx, newCallOptions(options).embedImages(images))
	if err != nil {
		return nil, err
	}
	return embeddingsOf(answer.GetEmbeddings()), nil
}

// EmbedTexts returns an embedding for each text, in order. Like
// [Client.EmbedImages], it is atomic and limited in size.
func (c *Client) EmbedTexts(ctx context.Context, texts []string, options ...CallOption) ([]TextEmbedding, error) {
	answer, err := c.stub.EmbedText(ctx, newCallOptions(options).embedTexts(texts))
	if err != nil {
		return nil, err
	}
	embeddings := make([]TextEmbedding, len(answer.GetEmbeddings()))
	for position, message := range answer.GetEmbeddings() {
		embeddings[position].Embedding = embeddingOf(message)
		embeddings[position].Tokenization = tokenizationAt(answer.GetTokenizations(), position)
	}
	return embeddings, nil
}

// Classify scores images against labels (zero-shot). It returns the labels of each
// image, best first.
func (c *Client) Classify(
	ctx context.Context, images []Image, labels []string, options ...CallOption,
) ([][]Classification, error) {
	answer, err := c.stub.Classify(ctx, newCallOptions(options).classify(images, labels))
	if err != nil {
		return nil, err
	}
	results := make([][]Classification, len(answer.GetResults()))
	for position, result := range answer.GetResults() {
		results[position] = classificationsOf(result)
	}
	return results, nil
}

// Compare returns how well the text of each pair describes its image: two numbers
// per pair instead of two embeddings.
func (c *Client) Compare(ctx context.Context, pairs []Pair, options ...CallOption) ([]Comparison, error) {
	answer, err := c.stub.Compare(ctx, newCallOptions(options).compare(pairs))
	if err != nil {
		return nil, err
	}
	return comparisonsOf(answer), nil
}

// EmbedQueries returns an embedding for each composed query, in order.
func (c *Client) EmbedQueries(ctx context.Context, queries []Query, options ...CallOption) ([]Embedding, error) {
	answer, err := c.stub.EmbedQuery(ctx, newCallOptions(options).embedQueries(queries))
	if err != nil {
		return nil, err
	}
	return embeddingsOf(answer.GetEmbeddings()), nil
}

func (o *callOptions) embedImages(images []Image) *alignpb.EmbedImageRequest {
	return &alignpb.EmbedImageRequest{Images: imageMessages(images), EmbeddingOptions: &o.embedding}
}

func (o *callOptions) embedTexts(texts []string) *alignpb.EmbedTextRequest {
	return &alignpb.EmbedTextRequest{Texts: texts, EmbeddingOptions: &o.embedding, Truncate: o.truncate}
}

func (o *callOptions) classify(images []Image, labels []string) *alignpb.ClassifyRequest {
	return &alignpb.ClassifyRequest{
		Images: imageMessages(images), Labels: labels, PromptTemplates: o.templates, TopK: o.topK,
	}
}

func (o *callOptions) compare(pairs []Pair) *alignpb.CompareRequest {
	request := &alignpb.CompareRequest{Truncate: o.truncate}
	for _, pair := range pairs {
		request.Pairs = append(request.Pairs, &alignpb.ImageTextPair{Image: pair.Image.message, Text: pair.Text})
	}
	return request
}

func (o *callOptions) embedQueries(queries []Query) *alignpb.EmbedQueryRequest {
	request := &alignpb.EmbedQueryRequest{EmbeddingOptions: &o.embedding, Truncate: o.truncate}
	for _, query := range queries {
		composed := &alignpb.ComposedQuery{}
		for _, term := range query {
			composed.Terms = append(composed.Terms, term.message)
		}
		request.Queries = append(request.Queries, composed)
	}
	return request
}

func classificationsOf(result *alignpb.ClassificationResult) []Classification {
	found := make([]Classification, len(result.GetClassifications()))
	for position, message := range result.GetClassifications() {
		found[position] = Classification{
			Label:      message.GetLabel(),
			LabelIndex: int(message.GetLabelIndex()),
			Score:      message.GetScore(),
			Similarity: message.GetSimilarity(),
			Logit:      message.GetLogit(),
		}
	}
	return found
}

func comparisonsOf(answer *alignpb.CompareResponse) []Comparison {
	found := make([]Comparison, len(answer.GetComparisons()))
	for position, message := range answer.GetComparisons() {
		found[position] = Comparison{
			Similarity:   message.GetSimilarity(),
			Logit:        message.GetLogit(),
			Tokenization: tokenizationAt(answer.GetTokenizations(), position),
		}
	}
	return found
}

func tokenizationAt(messages []*alignpb.Tokenization, position int) Tokenization {
	if position < len(messages) {
		return tokenizationOf(messages[position])
	}
	return Tokenization{} // servers in tests may leave them out
}
