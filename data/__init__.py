"""What the samples are: manifests, decoders, tasks, splits and the leakage audit."""
