"""Reporting a run: its facts, model card and report, and pushing them to the Hub."""
