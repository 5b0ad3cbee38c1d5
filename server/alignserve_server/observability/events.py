"""Every event that the server logs, by name, with its meaning.

Log queries and alerts rely on these names. The list in `server/docs/logs.md` is generated from here, and a
test compares the names with the calls of loggers.
"""

from __future__ import annotations

from collections.abc import Mapping

EVENTS: Mapping[str, str] = {
    # Start
    "listening": "The ports are open: `port`, `metrics_port` and `http_port`, 0 if there is none.",
    "listening_unprotected": "Other machines can reach the server without TLS or without authentication.",
    "ready": "The model is loaded and has run; with several processes, each of them is ready.",
    "startup_failed": "`reason` says why and what to do. An unexpected error also has a traceback.",
    "unknown_variable": "A variable `ALIGNSERVE_…` is not a setting; `reason` suggests the nearest one.",
    "gpu_unused": "The server runs on the CPU of a machine with a GPU; `reason` says why.",
    "gpu_metrics_unavailable": "NVIDIA's management library is missing, so there are no GPU metrics.",
    "converting": "OpenVINO converts the checkpoint, once.",
    "conversion_damaged": "A cached or included conversion is damaged, or was made from other files, and is "
    "made again; `reason` names the files.",
    "cache_not_writable": "The cache directory is not writable, so each start converts the checkpoint, or "
    "compiles kernels, again.",
    "cosine_similarity_too_low": "Embeddings are too far from the reference; "
    "a more precise configuration is used.",
    "runtime_unavailable": "The runtime cannot run the checkpoint, so torch is used.",
    "tokens_without_embedding": "The tokenizer has `count` tokens more than the model's `vocabulary_rows`; "
    "texts with these tokens are refused.",
    "cuda_graph_too_large": "The CUDA graph for batches of `batch_size`, of texts with up to `tokens`, does "
    "not fit into memory.",
    "cuda_graphs_disabled": "CUDA graphs cannot be captured, for a `reason`; the process starts again "
    "without them.",
    "cuda_graphs_inexact": "Embeddings of some CUDA graphs are too far from the reference; these `batches` "
    "run in other graphs or without one.",
    "cuda_kernels_chosen": "`kernels` embed images; the others that were measured have lower "
    "`images_per_second`, or are unusable. Choosing took `seconds`.",
    "cuda_kernels_unusable": "Some kernels for images cannot run here or are not exact enough; each has its "
    "reason.",
    "batch_sizes_not_saved": "Tuned batch sizes cannot be written to `file`; the next start measures again.",
    # Requests
    "call": "A sampled call has ended; see the access log.",
    "inference_failed": "The model failed on an item. The caller got the same `error_id`.",
    "unexpected_error": "A bug. The caller got the same `error_id`.",
    "out_of_device_memory": "A batch did not fit into device memory; `new_limit` is the new maximum size.",
    "max_batch_size_raised": "Larger batches proved faster while serving, so the maximum size was raised.",
    # Stalls
    "stalled": "`what` makes no progress: `batch` or `preprocess` for `running_seconds`, `device` after "
    "`failed_batches`, or a `lane` that has died.",
    "recovered": "A stall has ended.",
    "unrecoverable_stall": "A stall lasted too long, a lane died, the device was lost or a front's model "
    "has changed; the process exits with code 3.",
    "device_lost": "The device fails every call, for a `reason` such as a CUDA fault; the process exits with "
    "code 3.",
    "lane_died": "A bug ended a lane's thread. Health stays NOT_SERVING until the process is restarted.",
    "watchdog_died": "A bug ended the watchdog; the process exits with code 3.",
    "grpc_died": "The gRPC server ended on its own; the process exits with code 3.",
    # Stop
    "draining": "A signal has arrived. Health is NOT_SERVING and calls are still served.",
    "stopping": "The drain delay is over. New calls are refused; accepted calls have the grace period.",
    "stopped": "The server has stopped.",
    "lane_still_running": "A batch was still running when the server stopped.",
    # Access
    "certificate_reloaded": "A renewed certificate is in use.",
    "certificate_reload_failed": "A renewed certificate is unusable, for a `reason`; the current one stays "
    "in use.",
    "certificate_not_valid": "The certificate in use has expired or is not valid yet.",
    "certificate_expires_sooner": "The certificate in use expires before the `earlier_one`.",
    "api_keys_reloaded": "The keys file has changed and was reloaded.",
    "api_keys_reload_failed": "The keys file cannot be read, for a `reason`; the current keys stay in use.",
    "no_api_keys": "The keys file is empty, so every call is refused.",
    # Workers
    "worker_ready": "A worker, device process or front is ready; it has its `pid` and the fields that "
    "`ready` has with one process.",
    "worker_died": "A worker ended with `exit_code` (negative: the signal that killed it) and restarts after "
    "`restart_seconds`.",
    "worker_hung": "A worker was silent for `silent_seconds` and is killed; `stacks` shows its threads, if "
    "it could still report them.",
    "worker_killed": "A worker did not stop in time and was killed.",
    "device_disconnected": "The process that runs the model has ended; this front waits for the next one.",
    "device_connected": "A front has reached the next process that runs the model, and serves again.",
    "model_changed": "The process that runs the model restarted with another one; this front restarts too.",
    "front_refused": "The device process cannot serve a front, for a `reason`.",
    "socket_deleted": "The device process's socket was deleted; it listens again.",
    "socket_not_made": "The deleted socket cannot be made again, for a `reason`; fronts that restart wait.",
    "connection_not_accepted": "The device process lacks resources for another front, for a `reason`; it "
    "tries again after a second.",
    "connection_malformed": "A front or the device process sent an invalid message; they are disconnected.",
    "peer_does_not_read": "A front or the device process no longer reads; they are disconnected.",
    "more_workers_than_cores": "`workers` share fewer `cores` and slow each other down.",
    # Logs and metrics
    "log_lines_dropped": "`count` lines are missing here because the log was not read in time.",
    "log_line_not_rendered": "A library logged an event that cannot be formatted, at `where`.",
    "metrics_scrape_failed": "A scrape failed.",
}
