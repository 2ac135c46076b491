"""Fitting the student to what the dataset holds."""
