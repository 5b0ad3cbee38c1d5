// Finds the pictures that fit a text best:
//
//   dotnet run -- http://localhost:50051 "a cat" ../../tests/data/photos/*.jpg
//
// ALIGNSERVE_API_KEY is sent if it is set. ALIGNSERVE_ROOT_CERTIFICATES names the PEM file of a private authority.

using System.Buffers.Binary;
using System.Security.Cryptography.X509Certificates;
using System.Threading.Channels;
using Alignserve.V1;
using Google.Protobuf;
using Google.Rpc;
using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Client.Configuration;

const int window = 32; // at most this many items of a stream are unanswered at any time
const int maxResponseBytes = 16 << 20;

if (args.Length < 3)
{
    Console.Error.WriteLine("usage: dotnet run -- http[s]://HOST:PORT TEXT IMAGE...");
    return 2;
}

using var channel = Connect(args[0]);
var client = new AlignService.AlignServiceClient(channel);
var headers = new Metadata { { "alignserve-max-response-bytes", maxResponseBytes.ToString() } };
if (Environment.GetEnvironmentVariable("ALIGNSERVE_API_KEY") is { } key)
{
    headers.Add("authorization", $"Bearer {key.Trim()}");
}

try
{
    var texts = new EmbedTextRequest { Texts = { args[1] }, EmbeddingOptions = Packed() };
    var query = ReadVector((await Call(options => client.EmbedTextAsync(texts, options))).Embeddings[0]);

    var found = new List<(double Cosine, string Path)>();
    await foreach (var (path, response) in Stream(args[2..]))
    {
        if (response.Error is { } error)
        {
            Console.Error.WriteLine($"{path}: {error.Message}"); // this item only
            continue;
        }
        found.Add((Dot(query, ReadVector(response.EmbedImage.Embeddings[0])), path));
    }
    foreach (var (cosine, path) in found.OrderByDescending(each => each.Cosine).Take(3))
    {
        Console.WriteLine($"{cosine:F4}  {path}");
    }
    return 0;
}
catch (RpcException failure)
{
    var details = failure.GetRpcStatus();
    Console.Error.WriteLine($"{failure.StatusCode} {details?.GetDetail<ErrorInfo>()?.Reason}: {failure.Status.Detail}");
    if (details?.GetDetail<BadRequest>() is { } request)
    {
        foreach (var violation in request.FieldViolations)
        {
            Console.Error.WriteLine($"  {violation.Field}: {violation.Description}"); // texts[0]: …
        }
    }
    return 1;
}

static GrpcChannel Connect(string address)
{
    var handler = new SocketsHttpHandler
    {
        KeepAlivePingDelay = TimeSpan.FromSeconds(60),
        KeepAlivePingTimeout = TimeSpan.FromSeconds(10),
        KeepAlivePingPolicy = HttpKeepAlivePingPolicy.WithActiveRequests,
    };
    if (Environment.GetEnvironmentVariable("ALIGNSERVE_ROOT_CERTIFICATES") is { } path)
    {
        var policy = new X509ChainPolicy
        {
            TrustMode = X509ChainTrustMode.CustomRootTrust,
            RevocationMode = X509RevocationMode.NoCheck,
        };
        policy.CustomTrustStore.ImportFromPemFile(path);
        handler.SslOptions.CertificateChainPolicy = policy;
    }
    var retries = new RetryPolicy
    {
        MaxAttempts = 5,
        InitialBackoff = TimeSpan.FromSeconds(0.1),
        MaxBackoff = TimeSpan.FromSeconds(5),
        BackoffMultiplier = 2,
        RetryableStatusCodes = { StatusCode.Unavailable },
    };
    return GrpcChannel.ForAddress(address, new GrpcChannelOptions
    {
        HttpHandler = handler,
        DisposeHttpClient = true,
        MaxReceiveMessageSize = maxResponseBytes,
        MaxRetryBufferPerCallSize = 64 << 20, // a larger request is not repeated; the default is 1 MiB
        MaxRetryBufferSize = 512 << 20,
        ServiceConfig = new ServiceConfig
        {
            MethodConfigs = { new MethodConfig { Names = { MethodName.Default }, RetryPolicy = retries } },
        },
    });
}

// Calls within 30 seconds, and again when a full server has said how long to wait. gRPC repeats UNAVAILABLE by itself.
async Task<T> Call<T>(Func<CallOptions, AsyncUnaryCall<T>> call)
{
    var options = new CallOptions(headers, DateTime.UtcNow.AddSeconds(30));
    while (true)
    {
        try
        {
            return await call(options);
        }
        catch (RpcException failure) when (DelayOf(failure) is { } delay && DateTime.UtcNow + delay < options.Deadline)
        {
            await Task.Delay(delay);
        }
    }
}

// Returns null if a repeat does not help: WOULD_MISS_DEADLINE would have the same deadline and less time.
static TimeSpan? DelayOf(RpcException failure)
{
    var details = failure.StatusCode == StatusCode.ResourceExhausted ? failure.GetRpcStatus() : null;
    return details?.GetDetail<ErrorInfo>()?.Reason == "WOULD_MISS_DEADLINE"
        ? null
        : details?.GetDetail<RetryInfo>()?.RetryDelay?.ToTimeSpan();
}

// Sends pictures as the window allows, and yields each answer with its path. It does not reconnect: when a server stops,
// it ends with UNAVAILABLE, and what is unanswered must be sent on another stream.
async IAsyncEnumerable<(string Path, StreamInferResponse Response)> Stream(string[] paths)
{
    using var ended = new CancellationTokenSource();
    using var stream = client.StreamInfer(new CallOptions(headers, cancellationToken: ended.Token));
    var places = Channel.CreateBounded<bool>(window);

    async Task Send()
    {
        for (var position = 0; position < paths.Length; position++)
        {
            await places.Writer.WriteAsync(true, ended.Token);
            var image = ByteString.CopyFrom(await File.ReadAllBytesAsync(paths[position], ended.Token));
            await stream.RequestStream.WriteAsync(new StreamInferRequest
            {
                CorrelationId = position.ToString(),
                EmbedImage = new EmbedImageRequest
                {
                    Images = { new Image { Content = image } },
                    EmbeddingOptions = Packed(),
                },
            });
        }
        await stream.RequestStream.CompleteAsync();
    }

    async Task SendOrCancel()
    {
        try
        {
            await Send();
        }
        catch
        {
            ended.Cancel(); // otherwise the server waits for more, and the loop below for the server
            throw;
        }
    }

    var answered = 0;
    var sending = SendOrCancel();
    try
    {
        while (await MoveNext())
        {
            var response = stream.ResponseStream.Current;
            places.Reader.TryRead(out _);
            answered++;
            yield return (paths[int.Parse(response.CorrelationId)], response);
        }
        if (answered < paths.Length)
        {
            throw new RpcException(new Grpc.Core.Status(StatusCode.Unavailable, "the server ended the stream early"));
        }
    }
    finally
    {
        ended.Cancel(); // also if the caller has left the loop
    }

    async Task<bool> MoveNext()
    {
        try
        {
            return await stream.ResponseStream.MoveNext(CancellationToken.None);
        }
        catch (RpcException) when (sending.IsFaulted)
        {
            await sending; // throws why, such as a file that cannot be read
            throw;
        }
    }
}

static EmbeddingOptions Packed() => new() { Format = EmbeddingFormat.PackedFloat32 };

// Packed floats are little-endian, at any address.
static float[] ReadVector(Embedding embedding)
{
    var packed = embedding.PackedFloat32.Span;
    var vector = new float[packed.Length / sizeof(float)];
    for (var position = 0; position < vector.Length; position++)
    {
        vector[position] = BinaryPrimitives.ReadSingleLittleEndian(packed[(position * sizeof(float))..]);
    }
    return vector;
}

// The cosine similarity of vectors of length 1.
static double Dot(float[] one, float[] other) => one.Zip(other, (a, b) => (double)a * b).Sum();
