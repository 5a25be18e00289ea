"""Many training runs on equal terms."""
