"""Data sets, one module each: how their records map to facts, questions, concepts and texts."""
