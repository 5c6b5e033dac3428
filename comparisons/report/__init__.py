"""Results as bars to reach, tables, figures and one HTML page."""
