"""flowno's tests. They mirror the source tree: ``core`` for the loop and the handles, ``backends`` for the selectors."""
