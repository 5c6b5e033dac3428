"""From data and a wanted recall to a structure and its budgets: build, pilot, calibration, cost model."""
