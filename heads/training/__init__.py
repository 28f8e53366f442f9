"""Parts of the training loop `heads.batched`."""
