"""Evaluations in the forms that others read: lm-eval, inspect_ai, plots, a Markdown table."""
