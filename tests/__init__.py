"""flowno's tests. They mirror the source tree: ``core`` for the loop, ``backends`` for the selectors."""
