"""The recipe that makes the embedded checkpoint: tokenizer, data, model, training loop, export, evaluation."""
