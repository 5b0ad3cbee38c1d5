"""Files of requests in OpenAI's batch form: requests in, answers out, by the server's gRPC API.

A line is read and answered as `POST /v1/embeddings` on the server's HTTP port would read and answer it. A
test sends the same bodies both ways and compares the answers.
"""
