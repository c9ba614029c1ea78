"""Scoring a folder of restored images: pairs, metrics, tables and pictures."""
