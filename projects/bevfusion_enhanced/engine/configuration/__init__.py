"""A config before anything is built from it: read, changed for what was asked, and checked."""
