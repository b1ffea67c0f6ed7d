"""The indexes that nearest neighbors are found with."""
