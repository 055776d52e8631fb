"""Run tables of recipes over seeds, collect their metrics, and write the page of results."""
