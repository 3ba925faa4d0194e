"""From a raw surface to a file that engines open: one verb a module."""
