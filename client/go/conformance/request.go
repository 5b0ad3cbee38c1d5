package main

import (
	"iter"
	"slices"

	"github.com/alignserve/alignserve/client/go/align"
)

// request has the keys of every operation.
type request struct {
	ID int    `json:"id"`
	Op string `json:"op"`

	// connect
	Target           string            `json:"target"`
	TLSCA            string            `json:"tls_ca"`
	TLSCertificate   string            `json:"tls_certificate"`
	TLSKey           string            `json:"tls_key"`
	APIKey           string            `json:"api_key"`
	MaxResponseBytes int               `json:"max_response_bytes"`
	Retry            *bool             `json:"retry"`
	Metadata         map[string]string `json:"metadata"`
	KeepaliveSeconds *float64          `json:"keepalive_seconds"`
	KeepaliveTimeout *float64          `json:"keepalive_timeout_seconds"`

	// every call
	TimeoutSeconds *float64 `json:"timeout_seconds"`
	CancelAfterMS  *int     `json:"cancel_after_ms"`

	// unary calls
	callKeys
	Images  []imageSource `json:"images"`
	Texts   []string      `json:"texts"`
	Pairs   []pair        `json:"pairs"`
	Queries []query       `json:"queries"`
	Summary bool          `json:"summary"`

	// stream
	Items            []item `json:"items"`
	Window           int    `json:"window"`
	Ordered          bool   `json:"ordered"`
	ProgressEvery    int    `json:"progress_every"`
	CancelAfterItems int    `json:"cancel_after_items"`

	// repeat
	Calls       int      `json:"calls"`
	Concurrency int      `json:"concurrency"`
	Request     *request `json:"request"`
}

// callKeys are the options of a call or of an item.
type callKeys struct {
	Format    string   `json:"format"`
	Normalize *bool    `json:"normalize"`
	Truncate  bool     `json:"truncate"`
	Labels    []string `json:"labels"`
	Templates []string `json:"prompt_templates"`
	TopK      int      `json:"top_k"`
}

type imageSource struct {
	Path   string `json:"path"`
	Base64 []byte `json:"base64"`
	Pixels *struct {
		Height int    `json:"height"`
		Width  int    `json:"width"`
		Data   []byte `json:"data"`
	} `json:"pixels"`
}

type pair struct {
	Image imageSource `json:"image"`
	Text  string      `json:"text"`
}

type query struct {
	Terms []term `json:"terms"`
}

type term struct {
	Image  *imageSource `json:"image"`
	Text   string       `json:"text"`
	Weight *float32     `json:"weight"`
}

type item struct {
	callKeys
	ID    string      `json:"id"`
	Kind  string      `json:"kind"`
	Image imageSource `json:"image"`
	Text  string      `json:"text"`
	Terms []term      `json:"terms"`
}

func (r *request) options() []align.Option {
	options := []align.Option{}
	if r.TLSCA == "" {
		options = append(options, align.WithPlaintext())
	} else {
		options = append(options, align.WithRootCA(r.TLSCA))
	}
	if r.TLSCertificate != "" {
		options = append(options, align.WithClientCertificate(r.TLSCertificate, r.TLSKey))
	}
	if r.APIKey != "" {
		options = append(options, align.WithAPIKey(r.APIKey))
	}
	if r.TimeoutSeconds != nil {
		options = append(options, align.WithTimeout(seconds(*r.TimeoutSeconds)))
	}
	if r.MaxResponseBytes > 0 {
		options = append(options, align.WithMaxResponseBytes(r.MaxResponseBytes))
	}
	if r.Retry != nil && !*r.Retry {
		options = append(options, align.WithoutRetries())
	}
	for key, value := range r.Metadata {
		options = append(options, align.WithMetadata(key, value))
	}
	if r.KeepaliveSeconds != nil && r.KeepaliveTimeout != nil {
		options = append(options, align.WithKeepalive(seconds(*r.KeepaliveSeconds), seconds(*r.KeepaliveTimeout)))
	}
	return options
}

var formats = map[string]align.Format{
	"float_list": align.FloatList,
	"float32":    align.Float32,
	"float16":    align.Float16,
	"int8":       align.Int8,
	"binary":     align.Binary,
}

func (k *callKeys) options() []align.CallOption {
	options := []align.CallOption{align.Templates(k.Templates...), align.TopK(k.TopK)}
	if k.Format != "" {
		options = append(options, align.AsFormat(formats[k.Format]))
	}
	if k.Normalize != nil && !*k.Normalize {
		options = append(options, align.Unnormalized())
	}
	if k.Truncate {
		options = append(options, align.Truncate())
	}
	return options
}

func (s *imageSource) image() (align.Image, error) {
	switch {
	case s.Path != "":
		return align.ReadImage(s.Path)
	case s.Pixels != nil:
		return align.RawImage(s.Pixels.Width, s.Pixels.Height, s.Pixels.Data), nil
	default:
		return align.ImageBytes(s.Base64), nil
	}
}

func (r *request) images() ([]align.Image, error) { return each(r.Images, (*imageSource).image) }

func (r *request) pairs() ([]align.Pair, error) { return each(r.Pairs, (*pair).pair) }

func (r *request) queries() ([]align.Query, error) {
	return each(r.Queries, func(q *query) (align.Query, error) { return each(q.Terms, (*term).term) })
}

func (p *pair) pair() (align.Pair, error) {
	image, err := p.Image.image()
	return align.Pair{Image: image, Text: p.Text}, err
}

func (t *term) term() (align.Term, error) {
	made := align.TextTerm(t.Text)
	if t.Image != nil {
		image, err := t.Image.image()
		if err != nil {
			return made, err
		}
		made = align.ImageTerm(image)
	}
	if t.Weight != nil {
		made = made.Weighted(*t.Weight)
	}
	return made, nil
}

func (r *request) streamOptions() []align.StreamOption {
	options := []align.StreamOption{}
	if r.Window > 0 {
		options = append(options, align.Window(r.Window))
	}
	if r.Ordered {
		options = append(options, align.Ordered())
	}
	return options
}

func (r *request) streamItems() (iter.Seq[align.Item], error) {
	items, err := each(r.Items, (*item).item)
	return slices.Values(items), err
}

func (i *item) item() (align.Item, error) {
	switch i.Kind {
	case "text":
		return align.TextItem(i.ID, i.Text, i.options()...), nil
	case "query":
		terms, err := each(i.Terms, (*term).term)
		return align.QueryItem(i.ID, terms, i.options()...), err
	}
	image, err := i.Image.image()
	switch i.Kind {
	case "image":
		return align.ImageItem(i.ID, image, i.options()...), err
	case "classify":
		return align.ClassifyItem(i.ID, image, i.Labels, i.options()...), err
	case "compare":
		return align.CompareItem(i.ID, align.Pair{Image: image, Text: i.Text}, i.options()...), err
	default:
		return align.Item{}, unsupported("no item of kind " + i.Kind)
	}
}

// each converts the elements up to the first that fails.
func each[From, To any](from []From, convert func(*From) (To, error)) ([]To, error) {
	converted := make([]To, len(from))
	for position := range from {
		var err error
		if converted[position], err = convert(&from[position]); err != nil {
			return nil, err
		}
	}
	return converted, nil
}
