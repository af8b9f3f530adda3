"""Training: one trainer, the losses, batches, references and memory."""
