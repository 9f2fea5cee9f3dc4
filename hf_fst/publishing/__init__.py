"""What is told of a run: facts, model card, report, and their way to the Hub."""
