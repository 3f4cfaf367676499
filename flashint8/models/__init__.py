"""Models and blocks built from the package's parts."""
