"""lmms-eval: our batched model, its plugin registration, and the embedded tasks."""
