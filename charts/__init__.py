"""What writes the chart's generated files."""
