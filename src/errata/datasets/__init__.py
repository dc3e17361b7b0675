"""Data sets: one file each, mapped to what errata edits and asks."""
