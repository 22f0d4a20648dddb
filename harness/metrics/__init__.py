"""What a trial is measured by: accuracy, FLOPs, latency, memory and realised tokens, one metric a file."""
