// Package alignpb is the API of alignserve, alignserve.v1, as protoc-gen-go and
// protoc-gen-go-grpc generate it. Package align is the client that is made of it.
//
// `go generate ./...` writes it again; it needs protoc, and takes the plugins
// from the `tool` lines of go.mod.
package alignpb

//go:generate sh generate.sh
