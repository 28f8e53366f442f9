"""What a fine-tuning minimises: one file per objective."""
