"""The glue to `transformers.Trainer`: trainer, options, checkpoints, journal, what is refused, several processes."""
