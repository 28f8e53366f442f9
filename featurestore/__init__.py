"""What the encoders saw: encoders, fingerprints and the store of their embeddings."""
