"""Run folders: what training writes, and what is read and compared of it."""
