package align_test

import (
	"image"
	"image/color"
	"math"
	"reflect"
	"testing"

	"github.com/alignserve/alignserve/client/go/align"
	"github.com/alignserve/alignserve/client/go/alignpb"
)

func embeddingOf(t *testing.T, message *alignpb.Embedding) align.Embedding {
	t.Helper()
	s := serve(t)
	s.onImage = func(*alignpb.EmbedImageRequest) (*alignpb.EmbedImageResponse, error) {
		return &alignpb.EmbedImageResponse{Embeddings: []*alignpb.Embedding{message}}, nil
	}
	found, err := connect(t, s).EmbedImages(t.Context(), []align.Image{align.ImageBytes([]byte("x"))})
	if err != nil {
		t.Fatal(err)
	}
	return found[0]
}

func TestEveryFormatIsDecoded(t *testing.T) {
	for name, test := range map[string]struct {
		message *alignpb.Embedding
		want    align.Embedding
	}{
		"list":    {&alignpb.Embedding{Values: []float32{1, -2}}, align.Embedding{Vector: align.Vector{1, -2}}},
		"float32": {&alignpb.Embedding{PackedFloat32: []byte{0, 0, 128, 63, 0, 0, 0, 192}}, align.Embedding{Vector: align.Vector{1, -2}}},
		"float16": {
			&alignpb.Embedding{PackedFloat16: []byte{0, 0x3c, 0, 0xc0, 1, 0, 0xff, 0x7b, 0, 0xfc}},
			align.Embedding{Vector: align.Vector{1, -2, 1.0 / (1 << 24), 65504, float32(math.Inf(-1))}},
		},
		"int8": {
			&alignpb.Embedding{PackedInt8: []byte{127, 0x81, 0}, Int8Scale: 0.5},
			align.Embedding{Vector: align.Vector{63.5, -63.5, 0}, Int8: []int8{127, -127, 0}, Int8Scale: 0.5},
		},
		"binary": {&alignpb.Embedding{PackedBinary: []byte{0xa0}}, align.Embedding{Binary: []byte{0xa0}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := embeddingOf(t, test.message); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestCosineIgnoresLengths(t *testing.T) {
	if got := (align.Vector{3, 0}).Cosine(align.Vector{2, 2}); math.Abs(got-math.Sqrt2/2) > 1e-9 {
		t.Errorf("got %v", got)
	}
}

func TestHammingCountsBits(t *testing.T) {
	if got := align.Hamming([]byte{0xff, 1}, []byte{0xf0, 1}); got != 4 {
		t.Errorf("got %d, want 4", got)
	}
}

func TestImagesOfEveryTypeBecomeTheSamePixels(t *testing.T) {
	bounds := image.Rect(1, 1, 3, 2) // does not start at 0, as parts of images do not
	reds := []color.Color{color.NRGBA{R: 200, G: 10, B: 30, A: 255}, color.NRGBA{R: 1, G: 2, B: 3, A: 255}}
	larger := image.NewNRGBA(image.Rect(0, 0, 5, 5))
	for name, made := range map[string]interface {
		image.Image
		Set(x, y int, c color.Color)
	}{
		"NRGBA": image.NewNRGBA(bounds),
		"RGBA":  image.NewRGBA(bounds),
		"part":  larger.SubImage(bounds).(*image.NRGBA),
		"16":    image.NewNRGBA64(bounds),
	} {
		t.Run(name, func(t *testing.T) {
			made.Set(1, 1, reds[0])
			made.Set(2, 1, reds[1])
			s := serve(t)

			if _, err := connect(t, s).EmbedImages(t.Context(), []align.Image{align.ImagePixels(made)}); err != nil {
				t.Fatal(err)
			}

			sent := s.requests[0].(*alignpb.EmbedImageRequest).GetImages()[0].GetPixels()
			if sent.GetWidth() != 2 || sent.GetHeight() != 1 || !reflect.DeepEqual(sent.GetData(), []byte{200, 10, 30, 1, 2, 3}) {
				t.Errorf("got %v", sent)
			}
		})
	}
}

func TestOpacityIsLeftOut(t *testing.T) {
	made := image.NewNRGBA(image.Rect(0, 0, 1, 1))
	made.Set(0, 0, color.NRGBA{R: 200, G: 100, B: 50, A: 0})
	s := serve(t)

	if _, err := connect(t, s).EmbedImages(t.Context(), []align.Image{align.ImagePixels(made)}); err != nil {
		t.Fatal(err)
	}

	sent := s.requests[0].(*alignpb.EmbedImageRequest).GetImages()[0].GetPixels().GetData()
	if !reflect.DeepEqual(sent, []byte{200, 100, 50}) {
		t.Errorf("got %v", sent)
	}
}
