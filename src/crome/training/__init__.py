"""The three stages on transformers.Trainer."""
