"""Evaluations: asked, kept in folders, compared, kept clean of training data."""
