"""Conditions (classes, texts, maps) as the arrays that a network takes."""
