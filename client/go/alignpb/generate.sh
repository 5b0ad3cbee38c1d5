#!/bin/sh
# Generates this package from ../../../protos. PROTOC names another protoc.
set -eu
module=github.com/alignserve/alignserve/client/go
file=alignserve/v1/align_service.proto

# The import path in the proto cannot be fetched, so M replaces it, for both plugins.
${PROTOC:-protoc} -I ../../../protos \
  --plugin=protoc-gen-go="$(go tool -n protoc-gen-go)" \
  --plugin=protoc-gen-go-grpc="$(go tool -n protoc-gen-go-grpc)" \
  --go_out=.. --go_opt="module=$module,M$file=$module/alignpb;alignpb" \
  --go-grpc_out=.. --go-grpc_opt="module=$module,M$file=$module/alignpb;alignpb" \
  "$file"
