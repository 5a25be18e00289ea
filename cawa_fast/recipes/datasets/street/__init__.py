"""The dataset ``street``: scenes that are drawn when they are read, without files."""
