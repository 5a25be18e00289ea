"""The dataset ``street``: scenes drawn on the fly, without files."""
