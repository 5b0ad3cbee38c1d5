package align

import (
	"image"
	"image/draw"
	"os"

	"github.com/alignserve/alignserve/client/go/alignpb"
)

// Image is an image to send, from [ImageBytes], [ReadImage], [ImagePixels] or
// [RawImage].
type Image struct{ message *alignpb.Image }

// ImageBytes is an image file in memory: JPEG, PNG or another format that the
// server accepts. The bytes are not copied; do not change them during the call.
func ImageBytes(content []byte) Image {
	return Image{&alignpb.Image{Source: &alignpb.Image_Content{Content: content}}}
}

// ReadImage reads an image file, which is sent unchanged.
func ReadImage(path string) (Image, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Image{}, err
	}
	return ImageBytes(content), nil
}

// ImagePixels is a decoded image, sent as 8-bit RGB. Alpha is dropped, as the
// server drops it from files. If you have a file, send the file: it is smaller,
// and JPEG decoders differ slightly.
func ImagePixels(decoded image.Image) Image {
	bounds := decoded.Bounds()
	pixels, isPlain := decoded.(*image.NRGBA)
	if !isPlain {
		pixels = image.NewNRGBA(bounds)
		draw.Draw(pixels, bounds, decoded, bounds.Min, draw.Src)
	}
	rgb := make([]byte, 0, bounds.Dx()*bounds.Dy()*3)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		row := pixels.Pix[pixels.PixOffset(bounds.Min.X, y):][:bounds.Dx()*4]
		for ; len(row) > 0; row = row[4:] {
			rgb = append(rgb, row[0], row[1], row[2])
		}
	}
	return RawImage(bounds.Dx(), bounds.Dy(), rgb)
}

// RawImage is pixels in memory, of a camera or a video: 8-bit RGB, row by row from
// the top left. The bytes are not copied.
func RawImage(width, height int, rgb []byte) Image {
	return Image{&alignpb.Image{Source: &alignpb.Image_Pixels{
		Pixels: &alignpb.Pixels{Width: int32(width), Height: int32(height), Data: rgb},
	}}}
}

func imageMessages(images []Image) []*alignpb.Image {
	messages := make([]*alignpb.Image, len(images))
	for position, image := range images {
		messages[position] = image.message
	}
	return messages
}
